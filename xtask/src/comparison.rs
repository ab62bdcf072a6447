//! Comparison of measured figures with committed ones.

/// Maximum ratio between a measurement and the committed one.
const TOLERANCE: f64 = 1.1;

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Name, with its unit.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Direction of an improvement.
    pub better: Better,
}

/// Direction of an improvement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Smaller values are better.
    Less,
    /// Greater values are better.
    More,
}

impl Figure {
    /// Returns how many times worse another measurement of the same figure is; below 1 if it is better.
    fn loss(&self, now: &Self) -> f64 {
        match self.better {
            Better::Less => now.value / self.value,
            Better::More => self.value / now.value,
        }
    }
}

/// Returns a line for each figure that is worse by more than a tenth than the committed one.
pub fn worse(committed: &[Figure], measured: &[Figure]) -> Vec<String> {
    let pairs = committed.iter().zip(measured);
    let too_much = pairs.filter(|(before, now)| before.loss(now) > TOLERANCE);
    too_much.map(|(before, now)| format!("{}: {:.3} instead of {:.3}", now.name, now.value, before.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_may_be_worse_by_a_tenth() {
        let figure = |better, value| vec![Figure { name: "a".to_owned(), value, better }];
        for (better, bad, good) in [(Better::Less, 112.0, 109.0), (Better::More, 90.0, 92.0)] {
            let committed = figure(better, 100.0);
            assert_eq!(worse(&committed, &figure(better, good)), Vec::<String>::new());
            assert_eq!(worse(&committed, &figure(better, bad)), [format!("a: {bad:.3} instead of 100.000")]);
        }
    }
}
