//! How far a value lies above others, in a unit that outliers among them do not move.

/// A normal distribution's standard deviation over its median absolute deviation (Rousseeuw and
/// Croux 1993, Alternatives to the median absolute deviation, section 1).
const NORMAL_CONSISTENCY: f64 = 1.4826;

/// The least standard deviation, as a part of the median: values that are all but equal would make
/// a spike of every ripple.
const LEAST_RELATIVE_DEVIATION: f64 = 1e-3;

/// The robust z-score `(value - median) / (1.4826 * MAD)` of a value among `past` ones, which are
/// finite and at least one.
pub(super) fn zscore(past: &[f64], value: f64) -> f64 {
    let center = median(past.to_vec());
    let deviation = median(past.iter().map(|other| (other - center).abs()).collect());
    let floor = (LEAST_RELATIVE_DEVIATION * center.abs()).max(f64::MIN_POSITIVE);
    (value - center) / (NORMAL_CONSISTENCY * deviation).max(floor)
}

/// The middle value, the mean of the two middle ones of an even number.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
