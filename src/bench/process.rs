//! What a process of this machine has used so far.

use std::{fs, io};

use crate::metrics::process::{cpu_secs, resident};

pub struct Process {
    pid: u32,
}

impl Process {
    /// An error if there is no such process, or no `/proc` to see it in.
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = Self { pid };
        process.cpu_secs()?;
        process.resident_kib()?;
        Ok(process)
    }

    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// User and system time of all threads, those that have ended included. The kernel counts in
    /// units of 10 ms.
    pub fn cpu_secs(&self) -> io::Result<f64> {
        cpu_secs(&self.file("stat")?).ok_or_else(unknown)
    }

    pub fn resident_kib(&self) -> io::Result<u64> {
        let bytes = resident(&self.file("status")?).ok_or_else(unknown)?;
        Ok(bytes as u64 / 1024)
    }

    fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid))
    }
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc is not as expected")
}
