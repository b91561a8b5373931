//! JSON text in the making. Nothing is parsed and written again.

use crate::wire::json::push_string;

/// The array in which one or more objects travel (0, rule 1).
pub fn join<S: AsRef<str>>(objects: impl IntoIterator<Item = S>) -> String {
    let mut array = String::from("[");
    for object in objects {
        if array.len() > 1 {
            array.push(',');
        }
        array.push_str(object.as_ref());
    }
    array.push(']');
    array
}

/// The text of a JSON object, written member by member.
#[derive(Default)]
pub struct Object(String);

impl Object {
    /// A member whose value is JSON text already.
    pub fn json(mut self, name: &str, json: &str) -> Self {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        push_string(&mut self.0, name);
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    pub fn json_if_any(self, name: &str, json: Option<&str>) -> Self {
        match json {
            Some(json) => self.json(name, json),
            None => self,
        }
    }

    pub fn text(self, name: &str, text: &str) -> Self {
        let mut json = String::with_capacity(text.len() + 2);
        push_string(&mut json, text);
        self.json(name, &json)
    }

    /// The members of another object, as [`Object::end`] made it.
    pub(super) fn members_of(mut self, object: &str) -> Self {
        let members = object
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        if let Some(members) = members.filter(|members| !members.is_empty()) {
            self.0.push(if self.0.is_empty() { '{' } else { ',' });
            self.0.push_str(members);
        }
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn end(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}
