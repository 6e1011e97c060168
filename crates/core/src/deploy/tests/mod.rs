//! Tests of the machine of deploys.
