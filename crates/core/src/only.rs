//! Which pools and steps are for this node: `only:` against the node's `roles:` and `attributes:`.
//!
//! Not here: `primary`, which no node is for good and a lease decides.

use std::collections::{BTreeMap, BTreeSet};

/// What a node is for, as its configuration and its command line say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// `roles:` and `--role`.
    pub roles: BTreeSet<String>,
    /// `attributes:`.
    pub attributes: BTreeMap<String, String>,
}

/// `only:`; an empty one is for every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// `roles`: the node has any of these; empty: whatever its roles.
    pub roles: BTreeSet<String>,
    /// All else: the node has each of these attributes, with this very value.
    pub attributes: BTreeMap<String, String>,
}

impl Only {
    /// Whether nothing is said, so that it is for every node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.attributes.is_empty()
    }

    /// Whether it is for this node. An attribute that the node does not have is equal to nothing.
    #[must_use]
    pub fn is_for(&self, node: &Traits) -> bool {
        let role = self.roles.is_empty() || self.roles.iter().any(|role| node.roles.contains(role));
        role && self.attributes.iter().all(|(name, value)| node.attributes.get(name) == Some(value))
    }

    /// The attributes that the node does not have at all: rather a slip of the pen than a choice.
    pub fn unknown<'a>(&'a self, node: &'a Traits) -> impl Iterator<Item = &'a str> {
        self.attributes.keys().filter(|name| !node.attributes.contains_key(*name)).map(String::as_str)
    }
}

impl std::fmt::Display for Only {
    /// As it might be written: `{roles: [app, db], slave: true}`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let roles = (!self.roles.is_empty()).then(|| format!("roles: [{}]", self.roles.iter().cloned().collect::<Vec<_>>().join(", ")));
        let attributes = self.attributes.iter().map(|(name, value)| format!("{name}: {value}"));
        write!(f, "{{{}}}", roles.into_iter().chain(attributes).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(roles: &[&str], attributes: &[(&str, &str)]) -> Traits {
        let Only { roles, attributes } = only(roles, attributes);
        Traits { roles, attributes }
    }

    fn only(roles: &[&str], attributes: &[(&str, &str)]) -> Only {
        Only {
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            attributes: attributes.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }

    #[test]
    fn any_role_is_enough_and_every_attribute_must_be_equal() {
        type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str], &'a [(&'a str, &'a str)], bool);
        let slave = ("slave", "true");
        let rows: &[Row<'_>] = &[
            // of `only`                              of the node
            (&[], &[], &[], &[], true),
            (&[], &[], &["app"], &[slave], true),
            (&["app"], &[], &[], &[], false),
            (&["app"], &[], &["app"], &[], true),
            (&["app"], &[], &["App"], &[], false),
            (&["app", "db"], &[], &["db", "worker"], &[], true),
            (&["app", "db"], &[], &["worker"], &[], false),
            (&[], &[slave], &[], &[slave], true),
            (&[], &[slave], &[], &[("slave", "false")], false),
            (&[], &[slave], &[], &[("slave", "yes")], false),
            (&[], &[slave], &[], &[], false),
            (&[], &[("slave", "false")], &[], &[], false),
            (&[], &[slave, ("zone", "a")], &[], &[slave], false),
            (&[], &[slave, ("zone", "a")], &[], &[slave, ("zone", "a"), ("disk", "ssd")], true),
            (&["db"], &[slave], &["db"], &[slave], true),
            (&["db"], &[slave], &["db"], &[], false),
            (&["db"], &[slave], &["app"], &[slave], false),
        ];
        for (roles, attributes, node_roles, node_attributes, wanted) in rows {
            let (only, node) = (only(roles, attributes), traits(node_roles, node_attributes));
            assert_eq!(only.is_for(&node), *wanted, "{only} on {node:?}");
        }
    }

    #[test]
    fn attributes_that_the_node_does_not_have_are_named() {
        let node = traits(&[], &[("slave", "false")]);
        assert_eq!(only(&[], &[("slave", "true"), ("zone", "a")]).unknown(&node).collect::<Vec<_>>(), ["zone"]);
    }

    #[test]
    fn it_is_shown_as_it_is_written() {
        assert_eq!(only(&["db", "app"], &[("slave", "true")]).to_string(), "{roles: [app, db], slave: true}");
    }
}
