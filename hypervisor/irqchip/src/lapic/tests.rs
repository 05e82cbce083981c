//! Placeholder until the rules are written down.
