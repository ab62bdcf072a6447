//! DNS names that led clients of this node to the addresses that they call.

mod answer;
mod cache;

pub use self::{
    answer::Answer,
    cache::{Names, NamesBounds},
};
