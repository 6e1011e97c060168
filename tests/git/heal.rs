//! Mirrors that were damaged, cut short or grew: each is told and put right by the next fetch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::{Scene, git_daemon, helper, helper_command, start};
use crate::waiting::pause;

fn packs(scene: &Scene) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(scene.mirror().join("objects/pack")).expect("there").map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "pack"));
    found
}

fn truncate(path: &Path, keep: u64) {
    let mut permissions = std::fs::metadata(path).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(path, permissions).expect("changed");
    std::fs::OpenOptions::new().write(true).open(path).expect("opened").set_len(keep).expect("cut");
}

/// Fetches, does the damage, fetches again: one verdict with these words, and all is well.
fn heals(what: &str, words: &[&str], damage: impl FnOnce(&Scene)) {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    scene.fetch(&url).fetched();
    damage(&scene);
    let answer = scene.fetch(&url);
    let (revision, healed) = answer.fetched();
    assert_eq!(revision, head, "{what}");
    assert_eq!(healed.len(), 1, "{what}: {healed:?}");
    for word in words {
        assert!(healed[0].contains(word), "{what}: {healed:?}");
    }
    scene.mirror_is_sound();
    assert!(scene.stage(&head).success, "{what}");
    assert_eq!(scene.fetch(&url).fetched(), (head.as_str(), vec![]), "{what}: healed once is healed");
}

#[test]
fn stale_locks_and_leftovers_are_removed() {
    heals("locks", &["HEAD.lock", "wanted.lock", "pack_git2_x", "config.lock"], |scene| {
        for path in ["HEAD.lock", "config.lock", "refs/selfstart/wanted.lock", "objects/pack/pack_git2_x"] {
            std::fs::write(scene.mirror().join(path), "").expect("written");
        }
    });
    heals("half a pack", &["pack-1234.pack"], |scene| {
        std::fs::write(scene.mirror().join("objects/pack/pack-1234.pack"), "PACK").expect("written");
    });
    heals("half a clone", &["half-made clone"], |scene| {
        std::fs::create_dir_all(scene.mirror().join("new.git/objects")).expect("made");
    });
}

#[test]
fn a_lock_from_the_future_is_no_obstacle() {
    heals("future lock", &["made anew"], |scene| {
        let lock = std::fs::File::create(scene.mirror().join("HEAD.lock")).expect("made");
        lock.set_modified(std::time::SystemTime::now() + Duration::from_secs(86_400)).expect("dated");
        // Something must be written for the lock to be in the way.
        std::fs::write(scene.mirror().join("HEAD"), "ref: refs/heads/elsewhere\n").expect("written");
    });
}

#[test]
fn damaged_mirrors_are_made_anew() {
    heals("a truncated pack", &["made anew"], |scene| {
        let pack = &packs(scene)[0];
        truncate(pack, std::fs::metadata(pack).expect("there").len() / 2);
    });
    heals("an empty pack", &["made anew"], |scene| truncate(&packs(scene)[0], 0));
    heals("a truncated index", &["made anew"], |scene| truncate(&packs(scene)[0].with_extension("idx"), 100));
    heals("a missing blob", &["made anew"], |scene| {
        let (mirror, pack) = (scene.mirror().display().to_string(), packs(scene)[0].clone());
        let aside = scene.path("aside.pack");
        std::fs::rename(&pack, &aside).expect("moved");
        std::fs::remove_file(pack.with_extension("idx")).expect("removed");
        let unpacked = std::process::Command::new("git")
            .args(["--git-dir", &mirror, "unpack-objects", "-q"])
            .stdin(std::fs::File::open(aside).expect("opened"))
            .status();
        assert!(unpacked.expect("git runs").success());
        let blob = scene.in_work(&["rev-parse", "HEAD:src/app.rb"]);
        std::fs::remove_file(scene.mirror().join("objects").join(&blob[..2]).join(&blob[2..])).expect("removed");
    });
    heals("no packs", &["made anew"], |scene| std::fs::remove_dir_all(scene.mirror().join("objects/pack")).expect("removed"));
    heals("no objects", &["made anew"], |scene| std::fs::remove_dir_all(scene.mirror().join("objects")).expect("removed"));
    heals("no HEAD", &["made anew", "half written"], |scene| std::fs::remove_file(scene.mirror().join("HEAD")).expect("removed"));
    heals("an empty HEAD", &["made anew"], |scene| std::fs::write(scene.mirror().join("HEAD"), "").expect("written"));
    heals("an empty ref", &["made anew"], |scene| std::fs::write(scene.mirror().join("refs/selfstart/wanted"), "").expect("written"));
    heals("a broken configuration", &["made anew"], |scene| std::fs::write(scene.mirror().join("config"), "[core\nbare").expect("written"));
    heals("an empty configuration", &["made anew"], |scene| std::fs::write(scene.mirror().join("config"), "").expect("written"));
    heals("a broken shallow file", &["made anew"], |scene| {
        // Only read when there is something to fetch.
        std::fs::write(scene.mirror().join("shallow"), "nonsense\n").expect("written");
        std::fs::remove_file(scene.mirror().join("HEAD")).expect("removed");
    });
    heals("something else", &["made anew"], |scene| {
        std::fs::remove_dir_all(scene.mirror()).expect("removed");
        std::fs::create_dir(scene.mirror()).expect("made");
        std::fs::write(scene.mirror().join("notes.txt"), "").expect("written");
    });
}

#[test]
fn a_bit_flipped_in_a_blob_is_noticed_when_staging_and_healed_by_the_next_fetch() {
    let scene = Scene::new();
    scene.write("large", (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>());
    let head = scene.commit("large");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    let pack = &packs(&scene)[0];
    truncate(pack, std::fs::metadata(pack).expect("there").len());
    let mut bytes = std::fs::read(pack).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(pack, bytes).expect("written");

    assert_eq!(scene.fetch(&scene.source()).fetched().1, Vec::<&str>::new(), "the beginning of each object is right");
    assert_eq!(scene.stage(&head).failed().0, "corrupt");
    let answer = scene.fetch(&scene.source());
    let (revision, healed) = answer.fetched();
    assert_eq!(revision, head);
    assert!(healed.len() == 1 && healed[0].contains("damaged"), "{healed:?}");
    assert!(scene.stage(&head).success);
}

#[test]
fn a_mirror_of_another_source_is_made_anew() {
    let scene = Scene::new();
    scene.fetch(&scene.source()).fetched();
    scene.git(&["clone", "-q", "--bare", "served/app.git", "served/other.git"]);
    let other = scene.path("served/other.git").display().to_string();
    let answer = scene.fetch(&other);
    assert!(answer.fetched().1[0].contains("of another source"), "{answer:?}");
    // The same source with other credentials is the same source.
    assert_eq!(scene.fetch(&other).fetched().1, Vec::<&str>::new());
}

#[test]
fn a_mirror_with_too_many_packs_is_made_anew() {
    let scene = Scene::new();
    let source = scene.source();
    let mut told = Vec::new();
    for round in 0..52 {
        scene.advance(&format!("round {round}"));
        let answer = scene.fetch(&source);
        told.extend(answer.fetched().1.iter().map(|text| format!("{round}: {text}")));
    }
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("51 packs"), "{told:?}");
    assert!(packs(&scene).len() < 5);
    scene.mirror_is_sound();
}

#[test]
fn a_mirror_that_holds_mostly_the_past_is_made_anew() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    let noise = |seed: u32| {
        (0..150_000_u32).flat_map(|n| (n ^ seed).wrapping_mul(2_654_435_761).rotate_left(seed % 31).to_le_bytes()).collect::<Vec<u8>>()
    };
    let mut told = Vec::new();
    for round in 1..6 {
        scene.write("noise", noise(round * 7_919));
        scene.commit("noise");
        scene.push();
        let answer = scene.fetch(&url);
        told.extend(answer.fetched().1.iter().map(|text| format!("{round}: {text}")));
    }
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("has grown to"), "{told:?}");
    assert_eq!(scene.mirrored().len(), 1);
}

#[test]
fn a_helper_killed_at_any_moment_leaves_what_the_next_one_heals() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    for number in 0..400 {
        scene.write(&format!("d{}/f{number}", number % 40), format!("{number}\n").repeat(50));
    }
    scene.commit("many");
    scene.push();
    // How long it takes when nothing happens: the kills are spread over that.
    let began = std::time::Instant::now();
    scene.fetch(&url).fetched();
    let whole = began.elapsed();
    let rounds = 24_u32;
    let mut healed = 0;
    for round in 0..rounds {
        let head = scene.advance(&format!("round {round}"));
        match round % 4 {
            // A first clone, one that replaces another, and two ordinary fetches.
            0 => std::fs::remove_dir_all(scene.mirror()).expect("removed"),
            1 => std::fs::write(scene.mirror().join("HEAD"), "").expect("written"),
            _ => {}
        }
        let mut child = start(&mut helper_command(), &scene.fetch_request(&url));
        // The moment is the input of this test, not something it waits for.
        pause(whole * round / rounds);
        let _ = child.kill();
        child.wait().expect("it ended");
        let answer = scene.fetch(&url);
        assert_eq!(answer.fetched().0, head, "round {round}");
        healed += usize::from(!answer.fetched().1.is_empty());
        if round % 8 == 7 {
            scene.mirror_is_sound();
        }
        let mut request = scene.stage_request(&head);
        request["stage"]["destination"] = json!(scene.path("releases/killed.tmp"));
        let mut child = start(&mut helper_command(), &request);
        pause(whole * round / rounds);
        let _ = child.kill();
        child.wait().expect("it ended");
        assert!(helper(&request).success, "round {round}: staging over a half-staged release");
        let files: usize = walk(&scene.path("releases/killed.tmp"));
        assert_eq!(files, 400 + 3, "round {round}");
    }
    assert!(healed > 0, "no kill hit anything: the test shows nothing");
}

fn walk(directory: &Path) -> usize {
    std::fs::read_dir(directory)
        .expect("there")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| if entry.file_type().expect("known").is_dir() { walk(&entry.path()) } else { 1 })
        .sum()
}
