//! Bad input: whoever gives it is told what is wrong with it, and everything else goes on.
#![forbid(unsafe_code)]

mod constraints;
mod spec;
