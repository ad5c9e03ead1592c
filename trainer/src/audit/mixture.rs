//! Two Gaussians in a few dimensions, fitted by expectation maximisation: a class split into what is like the rest and what is
//! not.

/// One picture's signals, standardised.
pub(super) type Point<const D: usize> = [f64; D];
type Matrix<const D: usize> = [[f64; D]; D];

/// Steps of expectation maximisation.
const STEPS: usize = 60;
/// Added to the diagonal of a covariance: a cluster is never thinner than this, in units of the class's own spread.
const RIDGE: f64 = 0.02;
/// Bins of a histogram for Otsu's threshold.
const BINS: usize = 200;

/// The threshold that splits values into two groups with the largest variance between them (Otsu 1979), and the share of all
/// variance that lies between.
pub(super) fn otsu(values: &[f64]) -> (f64, f64) {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let width = (high - low) / BINS as f64;
    // Without spread, or with NaN.
    if width.is_nan() || width <= 0.0 {
        return (high, 0.0);
    }
    let mut bins = [(0.0f64, 0.0f64); BINS];
    for &v in values {
        let bin = &mut bins[(((v - low) / width) as usize).min(BINS - 1)];
        bin.0 += 1.0;
        bin.1 += v;
    }
    let (n, total) = (values.len() as f64, values.iter().sum::<f64>());
    let variance = values.iter().map(|v| (v - total / n).powi(2)).sum::<f64>() / n;
    let (mut below, mut sum, mut best) = (0.0, 0.0, (high, 0.0));
    for (i, (count, part)) in bins.iter().enumerate() {
        below += count;
        sum += part;
        if below > 0.0 && below < n {
            let apart = sum / below - (total - sum) / (n - below);
            let between = below * (n - below) * apart * apart / (n * n * variance);
            if between > best.1 {
                best = (low + (i + 1) as f64 * width, between);
            }
        }
    }
    best
}

/// A Gaussian with its share of the points.
pub(super) struct Cluster<const D: usize> {
    share: f64,
    mean: Point<D>,
    /// Lower triangle of the covariance's Cholesky factor.
    factor: Matrix<D>,
}

/// The lower factor of a positive definite matrix; `None` where rounding has made it something else.
fn cholesky<const D: usize>(m: &Matrix<D>) -> Option<Matrix<D>> {
    let mut l = [[0.0; D]; D];
    for i in 0..D {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i][k] * l[j][k]).sum();
            l[i][j] = if i == j { (m[i][i] - sum).sqrt() } else { (m[i][j] - sum) / l[j][j] };
        }
        if l[i][i].is_nan() || l[i][i] <= 0.0 {
            return None;
        }
    }
    Some(l)
}

impl<const D: usize> Cluster<D> {
    /// Of points that weigh 0..=1 each; `None` where they give no Gaussian.
    pub(super) fn fit(points: &[Point<D>], weights: impl Fn(usize) -> f64) -> Option<Self> {
        let total: f64 = (0..points.len()).map(&weights).sum();
        let mut mean = [0.0; D];
        for (i, p) in points.iter().enumerate() {
            (0..D).for_each(|d| mean[d] += weights(i) * p[d] / total);
        }
        let mut cov = [[0.0; D]; D];
        for (i, p) in points.iter().enumerate() {
            for a in 0..D {
                for b in 0..=a {
                    cov[a][b] += weights(i) * (p[a] - mean[a]) * (p[b] - mean[b]) / total;
                }
            }
        }
        (0..D).for_each(|d| cov[d][d] += RIDGE);
        Some(Self { share: total / points.len() as f64, mean, factor: cholesky(&cov)? })
    }

    /// The logarithm of share times density, without the constant.
    pub(super) fn log(&self, p: &Point<D>) -> f64 {
        let (mut z, mut square, mut det) = ([0.0; D], 0.0, 0.0);
        for i in 0..D {
            let sum: f64 = (0..i).map(|k| self.factor[i][k] * z[k]).sum();
            z[i] = (p[i] - self.mean[i] - sum) / self.factor[i][i];
            square += z[i] * z[i];
            det += self.factor[i][i].ln();
        }
        self.share.ln() - det - 0.5 * square
    }
}

/// How likely each point belongs to the second of two clusters, 0..=1, starting from a guess at it. `None` where the points do
/// not split.
pub(super) fn split<const D: usize>(points: &[Point<D>], guess: &[bool]) -> Option<Vec<f64>> {
    let mut likely: Vec<f64> = guess.iter().map(|&g| if g { 0.99 } else { 0.01 }).collect();
    for _ in 0..STEPS {
        let first = Cluster::fit(points, |i| 1.0 - likely[i])?;
        let second = Cluster::fit(points, |i| likely[i])?;
        for (p, likely) in points.iter().zip(&mut likely) {
            // 1 / (1 + exp(a - b)) does not overflow to NaN.
            *likely = 1.0 / (1.0 + (first.log(p) - second.log(p)).exp());
        }
    }
    Some(likely)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::rng::Rng;

    fn cloud(n: usize, centre: Point<6>, rng: &mut Rng) -> Vec<Point<6>> {
        (0..n).map(|_| std::array::from_fn(|d| centre[d] + f64::from(rng.normal()))).collect()
    }

    #[test]
    fn two_clouds_are_told_apart() {
        let mut rng = Rng::new(3, 0);
        let mut points = cloud(500, [0.0; 6], &mut rng);
        points.extend(cloud(40, [4.0, -4.0, 4.0, 0.0, 0.0, 0.0], &mut rng));
        // A poor guess: half of the small cloud, a tenth of the large one.
        let guess: Vec<bool> = (0..540).map(|i| if i < 500 { i % 10 == 0 } else { i % 2 == 0 }).collect();
        let likely = split(&points, &guess).expect("they split");
        let second = |range: std::ops::Range<usize>| likely[range].iter().filter(|&&p| p > 0.5).count();
        assert!(second(500..540) >= 38 && second(0..500) <= 10, "{}, {}", second(500..540), second(0..500));
    }

    #[test]
    fn points_that_cannot_split_give_no_panic() {
        assert!(split::<2>(&[], &[]).is_none_or(|l| l.is_empty()));
        let same = vec![[1.0; 6]; 30];
        for guess in [vec![true; 30], vec![false; 30], (0..30).map(|i| i < 3).collect()] {
            assert!(split(&same, &guess).is_none_or(|l| l.len() == 30 && l.iter().all(|p| p.is_finite())));
        }
    }

    #[test]
    fn otsu_finds_the_gap_and_its_weight() {
        let values: Vec<f64> =
            (0..100).map(|i| if i < 70 { f64::from(i) * 0.01 } else { 10.0 + f64::from(i) * 0.01 }).collect();
        let (t, between) = otsu(&values);
        assert!((0.69..10.7).contains(&t) && between > 0.99, "{t} {between}");
        assert_eq!(otsu(&[2.0; 5]).1, 0.0);
        assert_eq!(otsu(&[f64::NAN; 3]).1, 0.0);
    }
}
