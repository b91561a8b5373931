use std::fmt;

/// Something in the configuration that needs a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub site: Site,
    /// What is wrong. Never quotes a key or a secret.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

/// Where in the configuration something was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Site {
    Flag(&'static str),
    Variable(&'static str),
    /// `line` counts from 1.
    File {
        name: String,
        line: usize,
    },
}

/// All that is wrong with a configuration: at least one problem, by site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.0.iter().enumerate() {
            if nth > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.site, self.what, self.mend)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File { name, line } => write!(f, "{name}:{line}"),
        }
    }
}
