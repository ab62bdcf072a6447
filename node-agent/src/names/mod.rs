//! Which names have led clients of this node to the addresses that they call: what answers of name servers have said.

mod answer;
mod cache;

pub use self::{
    answer::Answer,
    cache::{Names, NamesBounds},
};
