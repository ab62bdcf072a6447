//! Metrics of edges, for Prometheus: series with labels for both ends, made from each graph that the publisher shows.
//!
//! A scrape writes the last series as text. It reads no ledger, joins nothing and blocks no graph.

mod labels;
mod series;
#[cfg(test)]
pub(crate) mod tests;
mod text;

pub use self::{
    series::{SeriesBook, SeriesSnapshot},
    text::chunks,
};
