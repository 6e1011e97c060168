//! The demo's git repository: bare, made and pushed to through libgit2.

use std::path::Path;
use std::time::Duration;

use git2::{Oid, Repository, RepositoryInitOptions, Signature};

use crate::sys::libgit2;

/// Of no consequence: there is no network in it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bare repository with one branch, `main`.
pub(super) struct Source {
    repository: Repository,
    head: Option<Oid>,
}

impl Source {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn make(path: &Path) -> Result<Self, git2::Error> {
        // The reader's own git configuration has no say here, and may not even be readable.
        libgit2::prepare(PATIENCE)?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).no_reinit(true).external_template(false).initial_head("main");
        Ok(Self { repository: Repository::init_opts(path, &options)?, head: None })
    }

    /// Puts a commit on the branch whose tree has these files; returns its full id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn push(&mut self, message: &str, files: &[(&str, &str)]) -> Result<String, git2::Error> {
        let repository = &self.repository;
        let mut tree = repository.treebuilder(None)?;
        for (name, content) in files {
            tree.insert(name, repository.blob(content.as_bytes())?, 0o100_644)?;
        }
        let tree = repository.find_tree(tree.write()?)?;
        let who = Signature::now("selfstart demo", "demo@localhost")?;
        let parent = self.head.map(|head| repository.find_commit(head)).transpose()?;
        let commit = repository.commit(Some("refs/heads/main"), &who, &who, message, &tree, parent.as_ref().as_slice())?;
        self.head = Some(commit);
        Ok(commit.to_string())
    }
}
