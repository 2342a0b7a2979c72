//! Plots as SVG, written by hand: bars, and a mark for each goal. They read in light and in dark.

use std::fmt::Write as _;

use serde_json::Value;

use super::document::number;
use super::{TUNNELS, median};

/// Of a plot, pixels.
const WIDTH: f64 = 760.0;
/// Where bars begin.
const LEFT: f64 = 270.0;
/// Where the longest ends.
const RIGHT: f64 = 670.0;
/// From bar to bar.
const STEP: f64 = 16.0;
/// Ours, everybody else's, and no tunnel.
const OURS: [&str; 2] = ["#0b7285", "#66d9e8"];
const OTHERS: [&str; 2] = ["#868e96", "#ced4da"];

/// All plots with the names of their files; of what was not measured there is none.
pub(super) fn all(figures: &Value) -> Vec<(&'static str, String)> {
    let goodput = bars(figures, "Goodput, MTU 1500, Mbit/s: 1 flow (dark), 8 flows (light)", "mbit");
    let time =
        bars(figures, "Processor time of the whole machine, s/GB: 1 flow (dark), 8 flows (light)", "cpu_s_per_gb");
    [("goodput.svg", goodput), ("cpu.svg", time), ("goals.svg", goals(figures))]
        .into_iter()
        .filter_map(|(name, plot)| Some((name, plot?)))
        .collect()
}

fn bars(figures: &Value, title: &str, metric: &str) -> Option<String> {
    let value = |tunnel: &str, flows: &str| median(figures, "wire-1500", &format!("{tunnel}/{flows}"), metric);
    let rows: Vec<(&str, &str, [f64; 2])> = TUNNELS
        .iter()
        .filter_map(|(tunnel, name)| Some((*tunnel, *name, [value(tunnel, "1")?, value(tunnel, "8")?])))
        .collect();
    let most = rows.iter().flat_map(|(.., values)| values).copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut inside = String::new();
    let mut y = 44.0;
    for (tunnel, name, values) in rows {
        let colours = if ["quic", "link", "tls"].contains(&tunnel) { OURS } else { OTHERS };
        inside.push_str(&label(LEFT - 10.0, y + STEP, "end", name));
        for (value, colour) in values.into_iter().zip(colours) {
            let width = value / most * (RIGHT - LEFT);
            let _infallible = writeln!(
                inside,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{width:.1}" height="{:.0}" fill="{colour}"/>"#,
                STEP - 2.0
            );
            let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
            inside.push_str(&label(LEFT + width + 6.0, y + STEP - 4.0, "start", &text));
            y += STEP;
        }
        y += 8.0;
    }
    Some(page(title, y + 6.0, &inside))
}

/// Each goal by how far it is from its floor: to the right of the line it is reached.
fn goals(figures: &Value) -> Option<String> {
    let mut lines: Vec<(&String, &Value)> =
        figures["ratios"].as_object()?.iter().filter(|(_, line)| line["floor"].is_number()).collect();
    if lines.is_empty() {
        return None;
    }
    lines.sort_by_key(|(key, _)| (number(key), *key));
    // Twice as good and half as good are as far from the line.
    let at = |times: f64| 430.0 + times.max(1e-3).log2().clamp(-3.0, 3.0) * 75.0;
    let mut inside = String::new();
    let height = 60.0 + 22.0 * f64::from(u32::try_from(lines.len()).ok()?);
    for (times, name) in [(0.125, "⅛"), (0.25, "¼"), (0.5, "½"), (1.0, "floor"), (2.0, "2×"), (4.0, "4×"), (8.0, "8×")]
    {
        let (x, grey) = (at(times), if times == 1.0 { "#868e96" } else { "#dee2e6" });
        let _infallible =
            writeln!(inside, r#"<line x1="{x:.0}" y1="48" x2="{x:.0}" y2="{:.0}" stroke="{grey}"/>"#, height - 10.0);
        inside.push_str(&label(x, 44.0, "middle", name));
    }
    for (row, (key, line)) in (0_u32..).zip(lines) {
        let y = 64.0 + 22.0 * f64::from(row);
        let (floor, less) = (line["floor"].as_f64()?, line["better"] == "less");
        let of = |value: &Value| value.as_f64().map(|value| at(if less { floor / value } else { value / floor }));
        let (middle, one, other) = (of(&line["median"])?, of(&line["ci95"][0])?, of(&line["ci95"][1])?);
        let colour = if line["met"] == "missed" { "#e8590c" } else { OURS[0] };
        inside.push_str(&label(190.0, y + 4.0, "end", key));
        let _infallible = writeln!(
            inside,
            r#"<line x1="{one:.1}" y1="{y:.0}" x2="{other:.1}" y2="{y:.0}" stroke="{colour}" stroke-width="2"/>"#
        );
        let _infallible = writeln!(inside, r#"<circle cx="{middle:.1}" cy="{y:.0}" r="5" fill="{colour}"/>"#);
        if let Some(goal) = of(&line["goal"]) {
            let _infallible =
                writeln!(inside, r#"<path d="M{goal:.1} {:.0}v12" stroke="{}" stroke-width="2"/>"#, y - 6.0, OURS[0]);
        }
    }
    Some(page("How far each goal is from its floor (the dash is the aim, the bar the 95 % interval)", height, &inside))
}

fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{}</text>\n", escaped(text))
}

fn page(title: &str, height: f64, inside: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" font-family=\"sans-serif\" \
         font-size=\"12\" role=\"img\">\n<title>{title}</title>\n<rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n{inside}</svg>\n",
        title = escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plots_are_of_what_was_measured() {
        assert!(all(&Value::Null).is_empty());
        let one = |mbit: f64| json!({"mbit": mbit, "cpu_s_per_gb": 1.0});
        let figures = json!({
            "stages": {"wire-1500": {"medians": {"quic/1": one(500.0), "quic/8": one(1000.0)}}},
            "ratios": {"G1/1": {"median": 2.0, "ci95": [1.9, 2.1], "floor": 1.0, "goal": 3.0, "better": "more", "met": "floor"}},
        });
        let plots = all(&figures);
        assert_eq!(plots.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["goodput.svg", "cpu.svg", "goals.svg"]);
        let goodput = &plots[0].1;
        assert!(goodput.contains(r#"width="200.0""#) && goodput.contains(r#"width="400.0""#), "{goodput}");
        assert!(!goodput.contains("wireguard"), "{goodput}");
        // One doubling above the floor.
        assert!(plots[2].1.contains(r#"cx="505.0""#), "{}", plots[2].1);
    }
}
