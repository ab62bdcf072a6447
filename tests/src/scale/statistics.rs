//! Arithmetic of measurements.

use serde::Serialize;

/// Median and 99th percentile of measured times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Number of measured times.
    pub count: usize,
}

/// Returns the percentiles; `None` without a value.
#[must_use]
pub fn percentiles(mut values: Vec<f64>) -> Option<Percentiles> {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some(Percentiles { p50: at(50)?, p99: at(99)?, count: values.len() })
}

/// Returns the maximum average over `window` neighbors of values per second. Fewer values are one window.
#[must_use]
pub fn busiest(per_second: &[u64], window: usize) -> f64 {
    let length = window.min(per_second.len()).max(1);
    per_second.windows(length).map(|part| ratio(part.iter().sum(), length as u64)).fold(0.0, f64::max)
}

/// Returns a quotient; 0 if the divisor is 0.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "figures are rounded far below 2^52")]
pub fn ratio(dividend: u64, divisor: u64) -> f64 {
    if divisor == 0 { 0.0 } else { dividend as f64 / divisor as f64 }
}

/// Returns a value with three digits behind the point.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let hundred = percentiles((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(hundred, Percentiles { p50: 50.0, p99: 99.0, count: 100 });
        assert_eq!(percentiles(vec![7.0]), Some(Percentiles { p50: 7.0, p99: 7.0, count: 1 }));
        assert_eq!(percentiles(Vec::new()), None);
    }

    #[test]
    fn busiest_window_is_an_average() {
        for (values, window, expected) in [(&[0, 10, 30, 0][..], 2, 20.0), (&[4, 8], 10, 6.0), (&[], 10, 0.0)] {
            assert!((busiest(values, window) - expected).abs() < 1e-9, "{values:?}");
        }
    }

    #[test]
    fn ratio_of_nothing_is_zero() {
        let is = |value: f64, expected: f64| (value - expected).abs() < 1e-9;
        assert!(is(ratio(3, 2), 1.5) && is(ratio(3, 0), 0.0) && is(rounded(1.23456), 1.235));
    }
}
