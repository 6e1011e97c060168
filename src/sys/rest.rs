//! Gives back the code that only a start or a deploy needed.
//!
//! Parsing a command line, reading a configuration, resolving names: most of the binary's code that a process has touched when it comes to
//! rest is not needed for as long as it rests. Its pages stay counted as this process's until somebody says otherwise.

use std::ffi::c_void;
use std::ptr;

/// Lets go of the program's pages that are as they are in its file (code and constants), and of memory that the allocator keeps for later.
/// What is needed again is mapped again from the page cache, a few microseconds for each part. A kernel that refuses leaves everything as
/// it is.
pub(crate) fn rest() {
    // SAFETY: takes an integer; gives back free pages of the heap, between allocations as much as at its end.
    #[expect(unsafe_code, reason = "the C library's allocator")]
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: `each` is called for every loaded object, on this thread, before this returns; it uses no data.
    #[expect(unsafe_code, reason = "dl_iterate_phdr(3) has no safe form")]
    unsafe {
        libc::dl_iterate_phdr(Some(each), ptr::null_mut());
    }
}

#[expect(unsafe_code, reason = "called by the C library with pointers to its own structures")]
unsafe extern "C" fn each(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> libc::c_int {
    // SAFETY: the C library passes a valid object with `dlpi_phnum` headers, the first time the program itself. A segment that may not be
    // written has no page of its own (relocations are applied in writable ones, position-independent code has no others): whatever is let
    // go of is in the file and reads the same when it is mapped again. Only whole pages inside the segment are.
    unsafe {
        let object = &*object;
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(1 << 16);
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
            let (Ok(address), Ok(length)) = (usize::try_from(object.dlpi_addr + header.p_vaddr), usize::try_from(header.p_filesz)) else {
                continue;
            };
            let start = address.next_multiple_of(page);
            let end = (address + length) / page * page;
            if start < end {
                libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED);
            }
        }
    }
    // The rest are libraries, whose code other processes have mapped too.
    1
}

#[cfg(test)]
mod tests {
    /// Resident pages of this program's code and constants, in kB.
    fn resident() -> u64 {
        let us = std::env::current_exe().expect("us");
        let maps = fs_err::read_to_string("/proc/self/smaps").expect("smaps");
        let mut ours = false;
        let mut sum = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") || line.contains(" r--p ") || line.contains(" rw-p ") {
                ours = line.ends_with(us.to_str().expect("text")) && line.contains(" r-xp ");
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| ours) {
                sum += rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
            }
        }
        sum
    }

    #[test]
    fn code_that_was_needed_once_is_given_back_and_comes_again_when_it_is_needed() {
        let text = format!("{:?}", some_work());
        let before = resident();
        super::rest();
        let after = resident();
        // To look needs code too.
        assert!(after + 256 < before, "{before} kB before, {after} kB after");
        assert_eq!(format!("{:?}", some_work()), text);
    }

    /// Touches some code.
    fn some_work() -> serde_json::Value {
        serde_json::from_str("{\"a\": [1, 2.5, \"three\", null], \"b\": {\"c\": true}}").expect("JSON")
    }
}
