//! Medians, and how sure they are.

/// Samples drawn anew for a confidence interval.
const RESAMPLES: usize = 4000;
/// Every run draws alike: the figures come from the samples alone.
const SEED: u64 = 6;

/// The median, and the interval that holds it with 95 % by the bootstrap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Of the values.
    pub median: f64,
    /// Lower and upper end.
    pub ci95: [f64; 2],
}

/// Of an even number of values, the middle between the two in the middle. `None` of no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// The value that a share of all does not exceed, 0 to 1. `None` of no values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, of a share up to 1")]
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied()
}

/// Of the median. `None` of no values.
pub fn estimate(values: &[f64]) -> Option<Estimate> {
    estimate_of(values, median)
}

/// Of any figure that several observations give together. `None` if they give none.
pub fn estimate_of<T: Copy>(values: &[T], figure: impl Fn(&[T]) -> Option<f64>) -> Option<Estimate> {
    let of_all = figure(values)?;
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut figures: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let drawn: Vec<T> = values.iter().map(|_| values[random.usize(..values.len())]).collect();
            figure(&drawn)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    Some(Estimate { median: of_all, ci95: [quantile(&figures, 0.025)?, quantile(&figures, 0.975)?] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.99), Some(99.0));
        assert_eq!(quantile(&hundred, 0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn intervals_hold_the_median_and_shrink_with_more_alike_values() {
        let wide = estimate(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]).unwrap();
        assert_eq!(wide.median, 5.0);
        assert!(wide.ci95[0] >= 1.0 && wide.ci95[0] < 5.0 && wide.ci95[1] > 5.0 && wide.ci95[1] <= 9.0, "{wide:?}");
        let sharp = estimate(&[5.0; 9]).unwrap();
        assert_eq!(sharp.ci95, [5.0, 5.0]);
        assert_eq!(estimate(&[]), None);
    }
}
