//! Reads a TOML file key by key and notes every problem instead of stopping at the first one.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Site};
use super::written::{Sited, WrittenFile};

/// A file being read, and what was found wrong with the configuration so far.
pub(super) struct Reading<'f> {
    file_name: &'f str,
    text: &'f str,
    problems: RefCell<Vec<Problem>>,
}

impl<'f> Reading<'f> {
    /// No file is read as an empty one.
    pub(super) fn of(file: Option<&'f WrittenFile>) -> Self {
        let (file_name, text) = file.map_or(("", ""), |file| (&file.name, &file.text));
        Self {
            file_name,
            text,
            problems: RefCell::default(),
        }
    }

    /// Notes what is no TOML and reads the rest of the file, or nothing.
    pub(super) fn root<T>(&self, read: impl FnOnce(&mut Section) -> T) -> T {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let site = self.site(error.span().unwrap_or_default());
            self.note(
                &site,
                error.message(),
                "https://toml.io shows how TOML is written",
            );
        }
        let nothing = DeTable::new();
        let root = match errors.is_empty() {
            true => root.get_ref(),
            false => &nothing,
        };
        self.table("", root, self.site(0..0), read)
    }

    pub(super) fn note(&self, site: &Site, what: impl Into<String>, mend: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            site: site.clone(),
            what: what.into(),
            mend: mend.into(),
        });
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    fn table<T>(
        &self,
        name: &'static str,
        table: &DeTable,
        site: Site,
        read: impl FnOnce(&mut Section) -> T,
    ) -> T {
        let mut section = Section {
            reading: self,
            name,
            table,
            site,
            known: Vec::new(),
        };
        let value = read(&mut section);
        section.note_unknown_keys();
        value
    }

    fn site(&self, span: Range<usize>) -> Site {
        let before = self.text.bytes().take(span.start);
        Site::File {
            name: self.file_name.to_owned(),
            line: 1 + before.filter(|byte| *byte == b'\n').count(),
        }
    }
}

/// A table of the file. Whatever keys nobody asked for are unknown ones.
pub(super) struct Section<'s> {
    pub(super) reading: &'s Reading<'s>,
    /// As the file heads it: `[log]`; empty for the top of the file.
    name: &'static str,
    table: &'s DeTable<'s>,
    pub(super) site: Site,
    known: Vec<&'static str>,
}

impl<'s> Section<'s> {
    pub(super) fn text(&mut self, key: &'static str) -> Option<Sited<String>> {
        let read = self.read(key, "a string in quotes", DeValue::as_str)?;
        Some(read.map(str::to_owned))
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Vec<Sited<String>> {
        const WANTED: &str = "a list of strings";
        let list = self.read(key, WANTED, DeValue::as_array);
        let entries = list.into_iter().flat_map(|list| list.value.iter());
        entries
            .filter_map(|entry| self.pick(key, entry, WANTED, DeValue::as_str))
            .map(|text| text.map(str::to_owned))
            .collect()
    }

    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let read = self.read(key, "true or false", DeValue::as_bool);
        read.map_or(default, |read| read.value)
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<usize>,
        default: usize,
    ) -> usize {
        self.number(key, allowed).unwrap_or(default)
    }

    /// `key` ends in `_secs`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        allowed_secs: RangeInclusive<usize>,
        default: Duration,
    ) -> Duration {
        self.number(key, allowed_secs)
            .map_or(default, |secs| Duration::from_secs(secs as u64))
    }

    pub(super) fn duration_ms(
        &mut self,
        key: &'static str,
        allowed_ms: RangeInclusive<usize>,
    ) -> Option<Duration> {
        let ms = self.number(key, allowed_ms)?;
        Some(Duration::from_millis(ms as u64))
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<usize>,
    ) -> Option<usize> {
        let wanted = format!(
            "a whole number from {} to {}",
            allowed.start(),
            allowed.end()
        );
        let integer = self.read(key, &wanted, DeValue::as_integer)?;
        let number = usize::from_str_radix(integer.value.as_str(), integer.value.radix()).ok();
        let number = number.filter(|number| allowed.contains(number));
        if number.is_none() {
            let what = format!("`{key}` is out of its range");
            self.reading
                .note(&integer.site, what, format!("write {wanted}"));
        }
        number
    }

    /// Reads the table under `key`, an empty one if there is none. `name` is how a file heads it.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: impl FnOnce(&mut Section) -> T,
    ) -> T {
        let wanted = format!("a table headed {name}");
        match self.read(key, &wanted, DeValue::as_table) {
            Some(table) => self.reading.table(name, table.value, table.site, read),
            None => {
                let nowhere = self.site.clone();
                self.reading.table(name, &DeTable::new(), nowhere, read)
            }
        }
    }

    /// Reads each table of the list under `key`. `name` is how a file heads one of them.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: impl Fn(&mut Section) -> T,
    ) -> Vec<T> {
        let wanted = format!("a list of tables, each headed {name}");
        let list = self.read(key, &wanted, DeValue::as_array);
        let entries = list.into_iter().flat_map(|list| list.value.iter());
        entries
            .filter_map(|entry| self.pick(key, entry, &wanted, DeValue::as_table))
            .map(|table| self.reading.table(name, table.value, table.site, &read))
            .collect()
    }

    /// The strings of the table under `key`, whatever their names.
    pub(super) fn named_texts(&mut self, key: &'static str) -> Vec<(String, Sited<String>)> {
        const WANTED: &str = "a table of strings";
        let table = self.read(key, WANTED, DeValue::as_table);
        let entries = table.into_iter().flat_map(|table| table.value.iter());
        entries
            .filter_map(|(name, value)| {
                let text = self.pick(key, value, WANTED, DeValue::as_str)?;
                Some((name.get_ref().to_string(), text.map(str::to_owned)))
            })
            .collect()
    }

    /// Where the value of `key` is written, if it is.
    pub(super) fn site_of(&self, key: &str) -> Option<Site> {
        let value = self.table.get(key)?;
        Some(self.reading.site(value.span()))
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        pick: impl FnOnce(&'s DeValue<'s>) -> Option<T>,
    ) -> Option<Sited<T>> {
        self.known.push(key);
        self.pick(key, self.table.get(key)?, wanted, pick)
    }

    fn pick<T>(
        &self,
        key: &str,
        found: &'s Spanned<DeValue<'s>>,
        wanted: &str,
        pick: impl FnOnce(&'s DeValue<'s>) -> Option<T>,
    ) -> Option<Sited<T>> {
        let site = self.reading.site(found.span());
        match pick(found.get_ref()) {
            Some(value) => Some(Sited { value, site }),
            None => {
                let found = found.get_ref().type_str();
                let what = format!("`{key}` is of type {found}");
                self.reading.note(&site, what, format!("write {wanted}"));
                None
            }
        }
    }

    fn note_unknown_keys(&self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                let site = self.reading.site(key.span());
                let place = match self.name {
                    "" => "at the top of the file".to_owned(),
                    name => format!("in {name}"),
                };
                self.reading.note(
                    &site,
                    format!("unknown key `{name}` {place}"),
                    match nearest(name, &self.known) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known keys: {}", self.known.join(", ")),
                    },
                );
            }
        }
    }
}

/// The candidate that is at most a few slips of the keyboard away from `text`.
pub(super) fn nearest<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let slips_max = text.len().div_ceil(3).min(3);
    candidates
        .iter()
        .map(|candidate| (edit_distance(text, candidate), *candidate))
        .filter(|(slips, _)| *slips <= slips_max)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte_a) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, byte_b) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte_a != byte_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        let known = ["listen", "log", "path_prefix", "connections_max"];
        for (slip, meant) in [
            ("lissten", Some("listen")),
            ("lsiten", Some("listen")),
            ("Log", Some("log")),
            ("path-prefix", Some("path_prefix")),
            ("max_connections", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(slip, &known), meant, "{slip}");
        }
    }
}
