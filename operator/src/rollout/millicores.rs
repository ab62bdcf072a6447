//! Amounts of CPU as thousandths of a core.

use std::ops::RangeInclusive;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// All suffixes of an amount and what they multiply it by; longer ones first where one ends with another.
const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// Smallest difference that counts. Noise in the last digits must not make 50m into 51.
const PRECISION: f64 = 1e-6;

/// Returns the amount, rounded up; `None` if it is no amount or out of bounds.
#[must_use]
pub fn within(quantity: &Quantity, bounds: RangeInclusive<u32>) -> Option<u32> {
    let millicores = cores(&quantity.0)? * 1000.0;
    if millicores < f64::from(*bounds.start()) - PRECISION {
        return None;
    }
    bounds.into_iter().find(|candidate| f64::from(*candidate) >= millicores - PRECISION)
}

fn cores(text: &str) -> Option<f64> {
    let suffix = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (number, factor) = suffix.unwrap_or((text, 1.0));
    let digits = number.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '.'));
    number.parse::<f64>().ok().filter(|number| digits && number.is_finite()).map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_in_many_ways() {
        let cases = [
            ("50m", 50),
            ("0.05", 50),
            ("5e-2", 50),
            ("50000u", 50),
            ("50000000n", 50),
            ("0.001k", 1000),
            ("0.001Ki", 1024),
            ("2", 2000),
            ("5m", 5),
            ("5.1m", 6),
            ("0.0501", 51),
        ];
        for (text, expected) in cases {
            assert_eq!(within(&Quantity(text.to_owned()), 5..=2000), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn amounts_out_of_bounds_are_none() {
        for text in ["1m", "4.9m", "2.001", "3", "1E", "-1", "", "inf", "lots"] {
            assert_eq!(within(&Quantity(text.to_owned()), 5..=2000), None, "{text:?}");
        }
    }
}
