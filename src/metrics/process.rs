//! What the kernel knows of this process, under the names that Prometheus' own clients use.

use std::fs;

use super::Page;

/// The kernel counts CPU time for its readers in units of 10 ms on every architecture.
const TICKS_PER_SEC: f64 = 100.0;

/// Prints nothing where there is no `/proc`.
pub fn process(page: &mut Page) {
    if let Some(bytes) = fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(resident)
    {
        let help = "Resident memory of the process.";
        page.gauge("process_resident_memory_bytes", help, bytes);
    }
    if let Some(secs) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(cpu_secs)
    {
        let name = "process_cpu_seconds_total";
        page.family(name, "counter", "User and system time of the process.");
        page.sample(name, &[], secs);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory being read.
        let open = files.count().saturating_sub(1);
        page.gauge("process_open_fds", "Open file descriptors.", open as f64);
    }
    if let Some(max) = fs::read_to_string("/proc/self/limits")
        .ok()
        .as_deref()
        .and_then(files_max)
    {
        let help = "File descriptors that may be open.";
        page.gauge("process_max_fds", help, max);
    }
}

pub(crate) fn resident(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// The program's name, which may hold anything, ends with the last parenthesis.
pub(crate) fn cpu_secs(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SEC)
}

fn files_max(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(
            resident("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n"),
            Some(2_097_152.0)
        );
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 4 0 99 1 1";
        assert_eq!(cpu_secs(stat), Some(2.0));
        let limits =
            "Limit Soft Hard\nMax open files            1024                 524288    files\n";
        assert_eq!(files_max(limits), Some(1024.0));
        assert_eq!(resident(""), None);
        assert_eq!(cpu_secs("7 (a) S"), None);
    }
}
