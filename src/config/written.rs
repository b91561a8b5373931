use std::fs;

use super::problem::{Problem, Site};

/// What the user wrote, unread. A flag has already replaced the environment variable of the same
/// meaning. It may hold secrets and therefore cannot be printed.
#[derive(Default)]
pub struct Written {
    pub file: Option<WrittenFile>,
    pub listen: Option<Sited<String>>,
    /// With `app_key` and `app_secret` one more app, or other credentials for the app of this id
    /// in the file.
    pub app_id: Option<Sited<String>>,
    pub app_key: Option<Sited<String>>,
    pub app_secret: Option<Sited<String>>,
    pub redis: Option<Sited<String>>,
    pub log_level: Option<Sited<String>>,
    pub log_format: Option<Sited<String>>,
}

/// A configuration file; `name` is what messages call it.
pub struct WrittenFile {
    pub name: String,
    pub text: String,
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Sited<T> {
    pub value: T,
    pub site: Site,
}

/// Where it stands makes no difference.
impl<T: PartialEq> PartialEq for Sited<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Sited<T> {}

impl<T> Sited<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Sited<U> {
        Sited {
            value: change(self.value),
            site: self.site,
        }
    }
}

impl WrittenFile {
    pub fn read(path: &Sited<String>) -> Result<Self, Problem> {
        let name = path.value.clone();
        match fs::read_to_string(&name) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => Err(Problem {
                site: path.site.clone(),
                what: format!("the configuration file {name} cannot be read: {error}"),
                mend: "give the path of a TOML file, or none for the development app".to_owned(),
            }),
        }
    }
}
