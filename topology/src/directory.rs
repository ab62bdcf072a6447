//! See the module of the same name in ARCHITECTURE.md.
