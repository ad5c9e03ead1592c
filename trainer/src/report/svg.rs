//! Line charts as inline SVG: axes, ticks, a legend and a label at the end of each line.

use super::{
    Curve, Series,
    text::{esc, percent, short},
};

/// Size of the drawing in its own units, about CSS pixels.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Least distance of two labels at the right edge.
const LABEL_STEP: f64 = 15.0;

/// Widest a letter of these labels gets on average.
const LETTER: f64 = 8.8;

/// Lines with at most this many points show each of them.
const DOTS: usize = 40;

/// Colours and dashes the style sheet tells apart.
const STYLES: usize = 6;

/// Positive values spread wider than this are drawn on a logarithmic axis.
const LOG_SPREAD: f64 = 50.0;

/// One chart with its heading and legend.
pub(super) fn chart(curve: &Curve) -> String {
    let title = esc(&curve.title);
    let Some(axes) = Axes::over(curve) else {
        return format!("<figure class=\"chart\"><h3>{title}</h3><p class=\"none\">No figures.</p></figure>\n");
    };
    let legend: String = curve.series.iter().enumerate().map(|(at, s)| entry(at, s, curve.percent)).collect();
    let scale = if axes.y.log { ", logarithmic" } else { "" };
    let y_label = format!("{}{scale}", esc(&curve.y_label));
    format!(
        "<figure class=\"chart\"><h3>{title}</h3><p class=\"unit\">{y_label}</p><ul class=\"legend\">{legend}</ul>{}\
         </figure>\n",
        axes.draw(curve)
    )
}

/// One entry of the legend, with the last figure of the line.
fn entry(at: usize, series: &Series, as_percent: bool) -> String {
    let class = at % STYLES;
    let end = last(series).map_or("no figures".to_owned(), |(_, y)| value(y, as_percent));
    format!(
        "<li><svg class=\"key\" viewBox=\"0 0 26 10\" width=\"26\" height=\"10\" aria-hidden=\"true\"><path class=\"line \
         s{class}\" d=\"M1 5H25\"/></svg>{} <b>{end}</b></li>",
        esc(&series.name)
    )
}

fn finite(series: &Series) -> impl Iterator<Item = (f64, f64)> + '_ {
    series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

fn last(series: &Series) -> Option<(f64, f64)> {
    finite(series).last()
}

fn value(y: f64, as_percent: bool) -> String {
    if as_percent { percent(y) } else { plain(y, 3) }
}

/// A number with about `digits` significant digits.
fn plain(value: f64, digits: i32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let order = value.abs().log10().floor();
    if !(-5.0..7.0).contains(&order) {
        return format!("{value:.1e}");
    }
    let decimals = (f64::from(digits) - 1.0 - order).clamp(0.0, 8.0) as usize;
    format!("{value:.decimals$}")
}

/// One axis: its range in values and its ticks.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Place of a value on the axis, 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let (low, high, value) =
            if self.log { (self.low.ln(), self.high.ln(), value.ln()) } else { (self.low, self.high, value) };
        ((value - low) / (high - low)).clamp(0.0, 1.0)
    }

    fn linear(low: f64, high: f64, whole: bool, loose: bool) -> Self {
        let (low, high) = if high > low {
            (low, high)
        } else {
            // One value only: room on both sides of it.
            let room = if whole { 1.0 } else { (low.abs() * 0.5).max(1e-6) };
            (low - room, high + room)
        };
        let mut step = nice((high - low) / 5.0);
        if whole {
            step = step.max(1.0).round();
        }
        let (low, high) = if loose { ((low / step).floor() * step, (high / step).ceil() * step) } else { (low, high) };
        let first = (low / step).ceil() * step;
        let ticks = (0..16)
            .map(|i| first + f64::from(i) * step)
            .filter(|t| *t <= high + step * 1e-6)
            .map(|t| if t.abs() < step * 1e-6 { 0.0 } else { t })
            .collect();
        Self { low, high, log: false, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let every = (last - first) / 6 + 1;
        let mut ticks: Vec<f64> = (first..=last).filter(|e| (e - first) % every == 0).map(|e| 10f64.powi(e)).collect();
        if last - first <= 2 {
            ticks.extend((first..last).flat_map(|e| [2.0, 5.0].map(|m| m * 10f64.powi(e))));
        }
        Self { low: 10f64.powi(first), high: 10f64.powi(last), log: true, ticks }
    }
}

/// The next step of 1, 2, 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let lead = step / power;
    let lead = if lead <= 1.0 {
        1.0
    } else if lead <= 2.0 {
        2.0
    } else if lead <= 5.0 {
        5.0
    } else {
        10.0
    };
    lead * power
}

/// Both axes of a chart.
struct Axes {
    x: Axis,
    y: Axis,
    /// Right edge of the plot: the labels of the lines stand beyond it.
    right: f64,
}

impl Axes {
    /// Axes that hold every finite point; nothing where there is none.
    fn over(curve: &Curve) -> Option<Self> {
        let all = || curve.series.iter().flat_map(finite);
        let bounds = |value: fn((f64, f64)) -> f64| {
            all().map(value).fold(None, |range: Option<(f64, f64)>, v| {
                Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
        };
        let ((x_low, x_high), (y_low, y_high)) = (bounds(|p| p.0)?, bounds(|p| p.1)?);
        let whole = all().all(|(x, _)| x.fract() == 0.0);
        let y = if curve.percent {
            Axis::linear(y_low.min(0.0), y_high.max(1.0), false, true)
        } else if y_low > 0.0 && y_high / y_low > LOG_SPREAD {
            Axis::logarithmic(y_low, y_high)
        } else {
            Axis::linear(y_low.min(0.0), y_high, false, true)
        };
        let longest = curve.series.iter().map(|s| label(s).chars().count()).max().unwrap_or(0);
        let right = WIDTH - 16.0 - LETTER * longest as f64;
        Some(Self { x: Axis::linear(x_low, x_high, whole, false), y, right })
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.at(value) * (self.right - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - BOTTOM - TOP)
    }

    fn draw(&self, curve: &Curve) -> String {
        let ends: Vec<String> = curve
            .series
            .iter()
            .filter_map(|s| last(s).map(|(_, y)| format!("{} ends at {}", s.name, value(y, curve.percent))))
            .collect();
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Line chart, {}: {}.\">",
            esc(&curve.title),
            esc(&ends.join("; "))
        );
        let (floor, right) = (HEIGHT - BOTTOM, self.right);
        let step = self.y.ticks.windows(2).map(|t| (t[1] - t[0]).abs()).fold(f64::INFINITY, f64::min);
        for tick in &self.y.ticks {
            let (y, text) = (self.y(*tick), tick_text(*tick, step, curve.percent, self.y.log));
            out += &format!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right:.1}\"/>");
            out += &format!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let step = self.x.ticks.windows(2).map(|t| t[1] - t[0]).fold(f64::INFINITY, f64::min);
        for tick in &self.x.ticks {
            let (x, text) = (self.x(*tick), tick_text(*tick, step, false, false));
            out += &format!("<path class=\"axis\" d=\"M{x:.1} {floor}v5\"/>");
            out += &format!(
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                floor + 18.0
            );
        }
        let x_label = if curve.x_label.is_empty() { "epoch" } else { &curve.x_label };
        out += &format!("<path class=\"axis\" d=\"M{LEFT} {floor}H{right:.1}\"/>");
        let middle = (LEFT + right) / 2.0;
        out += &format!(
            "<text class=\"name\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 6.0,
            esc(x_label)
        );
        for (at, series) in curve.series.iter().enumerate() {
            out += &self.line(at % STYLES, series, curve.percent);
        }
        out += &self.labels(&curve.series);
        out += "</svg>";
        out
    }

    /// One line; gaps where points are not finite.
    fn line(&self, class: usize, series: &Series, as_percent: bool) -> String {
        let mut path = String::new();
        let mut pen_up = true;
        for (x, y) in &series.points {
            if !(x.is_finite() && y.is_finite()) {
                pen_up = true;
                continue;
            }
            path += &format!("{}{:.1} {:.1}", if pen_up { 'M' } else { 'L' }, self.x(*x), self.y(*y));
            pen_up = false;
        }
        if path.is_empty() {
            return path;
        }
        let mut out = format!("<path class=\"line s{class}\" d=\"{path}\"/>");
        let dots: Vec<(f64, f64)> =
            if series.points.len() <= DOTS { finite(series).collect() } else { last(series).into_iter().collect() };
        for (x, y) in dots {
            out += &format!(
                "<circle class=\"dot s{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{}, {}: {}</title></circle>",
                self.x(x),
                self.y(y),
                esc(&series.name),
                plain(x, 6).trim_end_matches(".00000"),
                value(y, as_percent)
            );
        }
        out
    }

    /// The names of the lines at their ends, pushed apart where they would touch.
    fn labels(&self, series: &[Series]) -> String {
        let mut ends: Vec<(usize, f64, f64, f64)> = series
            .iter()
            .enumerate()
            .filter_map(|(at, s)| last(s).map(|(x, y)| (at, self.x(x), self.y(y), self.y(y))))
            .collect();
        ends.sort_by(|a, b| a.2.total_cmp(&b.2));
        let mut free = TOP;
        for end in &mut ends {
            end.3 = end.3.max(free);
            free = end.3 + LABEL_STEP;
        }
        let mut free = HEIGHT - BOTTOM;
        for end in ends.iter_mut().rev() {
            end.3 = end.3.min(free);
            free = end.3 - LABEL_STEP;
        }
        let mut out = String::new();
        for (at, x, y, label_y) in ends {
            let (class, text_x) = (at % STYLES, self.right + 12.0);
            if (label_y - y).abs() > 2.0 || self.right - x > 4.0 {
                out += &format!("<path class=\"lead\" d=\"M{:.1} {y:.1}L{:.1} {label_y:.1}\"/>", x + 4.0, text_x - 2.0);
            }
            let name = series.get(at).map(label).unwrap_or_default();
            out += &format!(
                "<text class=\"end s{class}\" x=\"{text_x:.1}\" y=\"{:.1}\">{}</text>",
                label_y + 4.0,
                esc(&name)
            );
        }
        out
    }
}

fn label(series: &Series) -> String {
    short(&series.name, 14)
}

/// A tick's figure, with the decimals its step asks for.
fn tick_text(tick: f64, step: f64, as_percent: bool, log: bool) -> String {
    if as_percent {
        return format!("{:.0}%", tick * 100.0 + 0.0);
    }
    if log || !step.is_finite() {
        return plain(tick, 1);
    }
    if tick.abs() >= 1e6 || step < 1e-5 {
        return format!("{tick:.1e}");
    }
    let decimals = (-step.log10()).ceil().max(0.0) as usize;
    format!("{tick:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{Axis, plain, tick_text};

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear(0.0, 2.31, false, true);
        assert_eq!(axis.ticks, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        let axis = Axis::linear(1.0, 200.0, true, false);
        assert!(axis.ticks.iter().all(|t| (1.0..=200.0).contains(t)) && axis.ticks.len() >= 3, "{:?}", axis.ticks);
        let axis = Axis::logarithmic(0.003, 2.2);
        assert!(axis.low <= 0.003 && axis.high >= 2.2);
        let one = Axis::linear(1.0, 1.0, true, false);
        assert_eq!(one.at(1.0), 0.5);
    }

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(plain(0.012_345, 3), "0.0123");
        assert_eq!(plain(0.0, 3), "0");
        assert_eq!(plain(2.0e-9, 3), "2.0e-9");
        assert_eq!(tick_text(0.5, 0.25, false, false), "0.5");
        assert_eq!(tick_text(0.2, 0.2, true, false), "20%");
    }
}
