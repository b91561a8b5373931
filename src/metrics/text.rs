use std::fmt::Write;

/// A page in Prometheus' text format, 0.0.4.
#[derive(Default)]
pub struct Page(String);

impl Page {
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value as f64);
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// Begins a family; its samples follow. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            let opening = if nth == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{opening}{label}=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.gauge("a", "Help.", 1.5);
        page.sample("b", &[("x", "1"), ("y", "\"\\\n")], 20_000_000_000.0);
        assert_eq!(
            page.into_text(),
            "# HELP a Help.\n# TYPE a gauge\na 1.5\nb{x=\"1\",y=\"\\\"\\\\\\n\"} 20000000000\n"
        );
    }
}
