//! Users and groups by name, from wherever the machine keeps them (`getpwnam_r(3)`: files, LDAP ...).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

use selfstart_core::time::MonoTime;

use super::spawn::Credentials;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// The login name.
    pub(crate) name: String,
    /// Number, group and supplementary groups.
    pub(crate) credentials: Credentials,
    /// The home directory.
    pub(crate) home: String,
    /// The login shell.
    pub(crate) shell: String,
}

/// Why a user or group is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// No such user.
    #[error("there is no user `{0}` on this machine")]
    NoUser(String),
    /// No such group.
    #[error("there is no group `{0}` on this machine")]
    NoGroup(String),
    /// The machine could not tell.
    #[error("the machine could not tell who `{0}` is")]
    Unknown(String, #[source] io::Error),
}

/// Who was looked up a moment ago: starting a thousand workers must not ask the machine (or a directory server) a thousand times.
#[derive(Debug, Default)]
pub(crate) struct Known {
    users: RefCell<BTreeMap<Asked, (MonoTime, User)>>,
}

/// A user's name, and the group if one was named.
type Asked = (String, Option<String>);

/// A change of an account is seen after this.
const KNOWN_FOR: std::time::Duration = std::time::Duration::from_secs(10);

impl Known {
    /// Looks a user up, as [`user`] does, or remembers it.
    ///
    /// # Errors
    /// As [`user`]; what failed is not remembered.
    pub(crate) fn user(&self, name: &str, group: Option<&str>, now: MonoTime) -> Result<User, UserError> {
        let key = (name.to_owned(), group.map(str::to_owned));
        let mut users = self.users.borrow_mut();
        if let Some((at, user)) = users.get(&key)
            && now.since(*at) < KNOWN_FOR
        {
            return Ok(user.clone());
        }
        let found = user(name, group)?;
        users.insert(key, (now, found.clone()));
        Ok(found)
    }
}

/// The most that one record of `/etc/passwd` or `/etc/group` may take; groups can be long.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Looks a user up by name or number; with `group`, that group alone, else the primary one and all supplementary ones.
///
/// # Errors
/// When there is none, or it cannot be told now.
#[expect(unsafe_code, reason = "the C library's records")]
pub(crate) fn user(name: &str, group: Option<&str>) -> Result<User, UserError> {
    let no_user = || UserError::NoUser(name.to_owned());
    let c_name = CString::new(name).map_err(|_| no_user())?;
    let mut user = record(
        name,
        |record: *mut libc::passwd, buffer, len, found| {
            // SAFETY: all pointers are to live memory of the given length.
            unsafe {
                match name.parse::<u32>() {
                    Ok(uid) => libc::getpwuid_r(uid, record, buffer, len, found),
                    Err(_) => libc::getpwnam_r(c_name.as_ptr(), record, buffer, len, found),
                }
            }
        },
        |record| {
            let text = |pointer: *const libc::c_char| {
                // SAFETY: the record's strings are NUL-terminated and live as long as its buffer.
                if pointer.is_null() { String::new() } else { unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned() }
            };
            User {
                name: text(record.pw_name),
                credentials: Credentials { uid: record.pw_uid, gid: record.pw_gid, groups: Vec::new() },
                home: text(record.pw_dir),
                shell: text(record.pw_shell),
            }
        },
    )?
    .ok_or_else(no_user)?;
    match group {
        Some(group) => {
            user.credentials.gid = group_number(group)?;
            user.credentials.groups = vec![user.credentials.gid];
        }
        None => user.credentials.groups = groups_of(&user),
    }
    Ok(user)
}

/// Returns a group's number, by name or number.
///
/// # Errors
/// When there is none, or it cannot be told now.
#[expect(unsafe_code, reason = "the C library's records")]
pub(crate) fn group_number(name: &str) -> Result<u32, UserError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let no_group = || UserError::NoGroup(name.to_owned());
    let c_name = CString::new(name).map_err(|_| no_group())?;
    // SAFETY: all pointers are to live memory of the given length.
    record(
        name,
        |record, buffer, len, found| unsafe { libc::getgrnam_r(c_name.as_ptr(), record, buffer, len, found) },
        |record: &libc::group| record.gr_gid,
    )?
    .ok_or_else(no_group)
}

/// Calls one of the `get..._r` functions with a buffer that grows until the record fits.
#[expect(unsafe_code, reason = "the C library's records")]
fn record<R, T>(
    name: &str,
    call: impl Fn(*mut R, *mut libc::c_char, libc::size_t, *mut *mut R) -> libc::c_int,
    read: impl Fn(&R) -> T,
) -> Result<Option<T>, UserError> {
    let mut buffer: Vec<libc::c_char> = vec![0; 4096];
    loop {
        // SAFETY: an all-zero record (pointers and numbers) is valid.
        let mut record: R = unsafe { std::mem::zeroed() };
        let mut found: *mut R = ptr::null_mut();
        match call(&raw mut record, buffer.as_mut_ptr(), buffer.len(), &raw mut found) {
            0 if found.is_null() => return Ok(None),
            // SAFETY: the call said that it filled the record.
            0 => return Ok(Some(read(unsafe { &*found }))),
            libc::ERANGE if buffer.len() < MAX_RECORD_BYTES => buffer.resize(buffer.len() * 4, 0),
            // What "not found" is on some systems (getpwnam(3), ERRORS).
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(UserError::Unknown(name.to_owned(), io::Error::from_raw_os_error(error))),
        }
    }
}

/// Returns all groups that a login of this user would have.
#[expect(unsafe_code, reason = "getgrouplist(3) has no safe wrapper")]
fn groups_of(user: &User) -> Vec<u32> {
    // It came from a C string, so it has no NUL.
    let Ok(name) = CString::new(user.name.as_str()) else { return vec![user.credentials.gid] };
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `groups` has room for `count` numbers.
        let fits = unsafe { libc::getgrouplist(name.as_ptr(), user.credentials.gid, groups.as_mut_ptr(), &raw mut count) };
        let needed = usize::try_from(count).unwrap_or(0);
        if fits >= 0 {
            groups.truncate(needed);
            return groups;
        }
        if needed <= groups.len() || needed > 65_536 {
            return vec![user.credentials.gid];
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_root_by_name_and_by_number() {
        let root = user("root", None).expect("every machine has root");
        assert_eq!((root.credentials.uid, root.home.as_str()), (0, "/root"));
        assert_eq!(user("0", None).expect("by number").name, "root");
        assert_eq!(user("root", Some("0")).expect("with a group").credentials.groups, vec![0]);
    }

    #[test]
    fn says_who_is_not_there() {
        assert!(matches!(user("no-such-user-here", None), Err(UserError::NoUser(name)) if name == "no-such-user-here"));
        assert!(matches!(user("root", Some("no-such-group")), Err(UserError::NoGroup(_))));
        assert!(matches!(user("a\0b", None), Err(UserError::NoUser(_))));
    }
}
