//! One point after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::disk::{Disk, Survives};
use crate::log;
use crate::node::{Node, Removals, Site, whole};

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Kill,
    Node,
    Full,
    Error,
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Node => "node",
            Self::Full => "enospc",
            Self::Error => "eio",
        }
    }
}

/// A site with one release live and another one pushed; the root as it was, stopped in good order.
struct Scene {
    site: Site,
    base: std::path::PathBuf,
    old: String,
    new: String,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new();
        let mut node = Node::start(&site);
        node.settled();
        // A release more than is kept: the deploy removes one, too.
        let old = site.push("one");
        let (code, said) = node.cli(&["deploy"]);
        assert_eq!(code, Some(0), "{said}");
        node.settled();
        node.is_tidy(&old, "one", Removals::Done);
        node.quiet();
        node.end();
        drop(node);
        let base = site.copy("base");
        let new = site.push("two");
        Self { site, base, old, new }
    }

    fn both(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(self.old.clone(), "one".to_owned()), (self.new.clone(), "two".to_owned())])
    }

    /// A node that minds the old release, and passes no point; the source has the new one.
    fn minding(&self) -> (Node<'_>, u64) {
        self.site.put(&self.base);
        fs_err::write(self.site.path("agent.log"), "").expect("emptied");
        self.site.point_to(&self.old);
        let mut node = Node::start(&self.site);
        node.settled();
        let count = node.quiet();
        self.site.point_to(&self.new);
        (node, count)
    }
}

/// How far a life went.
enum Came {
    ToThePoint,
    ToTheEnd,
}

/// What is asked of the node when the point is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// A node with workers is asked for a deploy.
    Deploy,
    /// A node is booted, which is a trigger too.
    Boot,
}

fn live_through(scene: &Scene, life: Life, what: What, nth: u64) -> Came {
    let (mut node, at) = match life {
        Life::Deploy => {
            let (node, count) = scene.minding();
            node.order(count + nth, what.word());
            (node, count + nth)
        }
        Life::Boot => {
            scene.site.put(&scene.base);
            fs_err::write(scene.site.path("agent.log"), "").expect("emptied");
            scene.site.point_to(&scene.new);
            (Node::start_ordered(&scene.site, nth, what.word()), nth)
        }
    };
    let mut asked = None;
    if life == Life::Deploy {
        asked = Some(node.cli(&["deploy"]));
    }
    // At once, whatever is just under way: promise 1.
    whole(&scene.site.root(), &scene.both());
    let mut live = node.settled();
    let came = if node.count() >= at { Came::ToThePoint } else { Came::ToTheEnd };
    if let Some((code, said)) = asked {
        assert!(code != Some(0) || live == scene.new, "`deploy` said that it is done, and {live} is live: {said}");
        if live != scene.new {
            assert_eq!(live, scene.old);
            let (code, said) = node.cli(&["deploy"]);
            assert_eq!(code, Some(0), "a deploy that is asked for again: {said}\n{}", node.said());
            live = node.settled();
        }
    }
    assert_eq!(live, scene.new, "{}", node.said());
    node.is_tidy(&live, "two", Removals::Done);
    node.end();
    came
}

/// One after the other on one node: each deploy is of one more push.
fn chain(scene: &Scene, what: What, from: u64, every: usize) -> u64 {
    scene.site.put(&scene.base);
    fs_err::write(scene.site.path("agent.log"), "").expect("emptied");
    let mut node = Node::start(&scene.site);
    let (mut live, mut text) = (scene.new.clone(), "two".to_owned());
    node.settled();
    let (code, said) = node.cli(&["deploy"]);
    assert_eq!(code, Some(0), "{said}");
    for nth in (from..).step_by(every) {
        let count = node.quiet();
        let pushed = format!("push {nth}");
        let revision = scene.site.push(&pushed);
        let both = BTreeMap::from([(live.clone(), text.clone()), (revision.clone(), pushed.clone())]);
        node.order(count + nth, what.word());
        let (code, said) = node.cli(&["deploy"]);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // At once, whatever is just under way: promise 1.
            whole(&scene.site.root(), &both);
            let mut now = node.settled();
            let reached = node.count() >= count + nth;
            assert!(code != Some(0) || now == revision, "`deploy` said that it is done, and {now} is live: {said}");
            if now != revision {
                let (code, said) = node.cli(&["deploy"]);
                assert_eq!(code, Some(0), "a deploy that is asked for again: {said}");
                now = node.settled();
            }
            assert_eq!(now, revision);
            node.is_tidy(&now, &pushed, if what == What::Node { Removals::Done } else { Removals::MayHaveFailed });
            reached
        }));
        match lived {
            Ok(true) => (live, text) = (revision, pushed),
            Ok(false) => {
                // Whatever could not be removed is gone after the next start.
                node.end();
                node.start_again(&[]);
                assert_eq!(node.settled(), revision);
                node.is_tidy(&revision, &pushed, Removals::Done);
                return nth - 1;
            }
            Err(cause) => told(scene, &format!("{what:?} at point {nth} of a deploy"), count, &*cause),
        }
    }
    unreachable!("a deploy has an end")
}

/// Fails with what is known.
fn told(scene: &Scene, what: &str, before: u64, cause: &(dyn std::any::Any + Send)) -> ! {
    let text = cause.downcast_ref::<String>().cloned().or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let points = log::read(&scene.site.path("gate"));
    let lines = points.iter().filter(|it| it.number > before);
    let at: Vec<String> = lines.map(|it| format!("{} {} {} {}", it.number - before, it.who, it.kind, it.path.display())).collect();
    panic!("{what}: {}\nthe points:\n{}", text.unwrap_or_default(), at.join("\n"));
}

/// Lets it happen at each point, until a life has no such point any more.
pub(crate) fn each(life: Life, what: What, every: usize) {
    let scene = Scene::new();
    let began = Instant::now();
    let from: u64 = std::env::var("POINTS_FROM").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut last = 0;
    // Agents that end one after the other are started again later and later, which a chain of kills would wait for.
    if life == Life::Deploy && what != What::Kill {
        last = chain(&scene, what, from, every);
    } else {
        for nth in (from..).step_by(every) {
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live_through(&scene, life, what, nth))) {
                Ok(Came::ToThePoint) => last = nth,
                Ok(Came::ToTheEnd) => break,
                Err(cause) => told(&scene, &format!("{what:?} at point {nth} of a {life:?}"), 0, &*cause),
            }
        }
    }
    assert!(last > 50, "a {life:?} has {last} points only: something goes past the gate");
    println!(
        "{life:?}, {what:?}: {last} points in {:.1} s; of the last life: {}",
        began.elapsed().as_secs_f64(),
        log::counts(&log::read(&scene.site.path("gate")))
    );
}

/// Boots from each disk that a power cut may leave.
pub(crate) fn power_cuts(seeds: u64) {
    let scene = Scene::new();
    let began = Instant::now();
    let (mut node, count) = scene.minding();
    let before = scene.site.copy("before");
    let (code, said) = node.cli(&["deploy"]);
    assert_eq!(code, Some(0), "{said}");
    let live = node.settled();
    node.is_tidy(&live, "two", Removals::Done);
    node.quiet();
    let points: Vec<_> = log::read(&scene.site.path("gate")).into_iter().filter(|point| point.number > count).collect();
    node.end();
    let after = scene.site.copy("after");
    let mut disk = Disk::read(&before, &scene.site.root(), &after);
    let mut seen = BTreeSet::new();
    let mut lives = 0;
    for point in &points {
        disk.apply(point);
        let mut ways = vec![Survives::Synced, Survives::NamesOnly, Survives::All];
        ways.extend((0..seeds).map(|seed| Survives::Some(seed * 100_000 + point.number)));
        for way in ways {
            let left = disk.after_power_cut(way);
            if !seen.insert(left.summary()) {
                continue;
            }
            lives += 1;
            let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| boot_from(&scene, &left)));
            if let Err(cause) = lived {
                let text = cause.downcast_ref::<String>().cloned().or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let text = text.unwrap_or_default();
                panic!(
                    "a power cut after point {} ({} {} {}), {way:?}: {text}\nthe disk:\n{}",
                    point.number,
                    point.who,
                    point.kind,
                    point.path.display(),
                    left.summary()
                );
            }
        }
    }
    println!(
        "power cuts: {} points, {lives} different disks in {:.1} s; {}",
        points.len(),
        began.elapsed().as_secs_f64(),
        log::counts(&points)
    );
}

fn boot_from(scene: &Scene, left: &crate::disk::Left) {
    let _was_one = fs_err::remove_dir_all(scene.site.root());
    left.write(&scene.site.root());
    fs_err::write(scene.site.path("agent.log"), "").expect("emptied");
    whole(&scene.site.root(), &scene.both());
    scene.site.point_to(&scene.new);
    let mut node = Node::start(&scene.site);
    let live = node.settled();
    assert_eq!(live, scene.new, "{}", node.said());
    node.is_tidy(&live, "two", Removals::Done);
    node.end();
}

/// Pushes at random moments, and kills at random points of what follows.
pub(crate) fn random(kills: u64) {
    let seed = std::env::var("POINTS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs()));
    println!("POINTS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let site = Site::new();
    let mut texts = BTreeMap::new();
    let mut node = Node::start(&site);
    let first = node.settled();
    texts.insert(first, "zero".to_owned());
    // Two releases are kept, so that there are two from here on.
    let mut newest = site.push("two");
    texts.insert(newest.clone(), "two".to_owned());
    let (code, said) = node.cli(&["deploy"]);
    assert_eq!(code, Some(0), "{said}");
    let mut killed = 0;
    let mut pushes = 0;
    while killed < kills {
        for _ in 0..random.u32(0..3) {
            pushes += 1;
            let text = format!("push {pushes}");
            newest = site.push(&text);
            texts.insert(newest.clone(), text);
            if random.bool() {
                let _held_up_or_not = node.cli(&["deploy", "--no-wait"]);
            }
        }
        let what = if random.u8(0..3) == 0 { What::Node } else { What::Kill };
        let at = node.count() + random.u64(1..120);
        node.order(at, what.word());
        let _cut_short_or_not = node.cli(&["deploy"]);
        whole(&site.root(), &texts);
        node.settled();
        killed += u64::from(node.count() >= at);
        node.order(0, "");
        let (mut code, mut said) = node.cli(&["deploy"]);
        if code == Some(3) {
            // It came to the point when all was settled, before the order was taken back.
            killed += 1;
            node.settled();
            (code, said) = node.cli(&["deploy"]);
        }
        assert_eq!(code, Some(0), "{said}\n{}", node.said());
        let live = node.settled();
        assert_eq!(live, newest, "{}", node.said());
        node.is_tidy(&live, &texts[&live], Removals::Done);
    }
    node.end();
    println!("{killed} kills over {pushes} pushes");
}
