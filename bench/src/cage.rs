//! A limit of memory around a process, by the kernel's control groups (either version), where they may be written.

use std::fs;
use std::path::PathBuf;

use crate::procfs::field;

/// A group of its own; removed when dropped (the kernel refuses while somebody is in it).
pub struct Cage {
    folder: PathBuf,
    second: bool,
}

impl Cage {
    /// Puts process `pid` into a new group that may use `bytes`; nothing where that cannot be had.
    #[must_use]
    pub fn around(pid: u32, bytes: u64) -> Option<Self> {
        let name = format!("sluicegate-bench-{}", std::process::id());
        [("/sys/fs/cgroup", true), ("/sys/fs/cgroup/memory", false)]
            .into_iter()
            .find_map(|(root, second)| {
                let folder = PathBuf::from(root).join(&name);
                fs::create_dir(&folder).ok()?;
                let cage = Self { folder, second };
                let limit = if second { "memory.max" } else { "memory.limit_in_bytes" };
                // Beside the first version's groups, the second's place is a folder like any other.
                fs::metadata(cage.folder.join(limit)).ok()?;
                fs::write(cage.folder.join(limit), bytes.to_string()).ok()?;
                fs::write(cage.folder.join("cgroup.procs"), pid.to_string()).ok()?;
                Some(cage)
            })
    }

    /// The most that was used, in KiB; it has the kernel's buffers and the files it caches for the group in it.
    #[must_use]
    pub fn peak_kib(&self) -> Option<u64> {
        let name = if self.second {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.trim().parse::<u64>().ok()? / 1_024)
    }

    /// How often the kernel ended a process of the group for want of memory.
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        let name = if self.second {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        field(&fs::read_to_string(self.folder.join(name)).ok()?, "oom_kill ")
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // It may be left behind, empty: that costs a name.
        let _ = fs::remove_dir(&self.folder);
    }
}
