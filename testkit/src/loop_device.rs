//! A block device over a file.

use std::path::Path;
use std::process::Command;

use crate::skip::skipped;

/// A loop device. Dropping it detaches the device.
pub struct LoopDevice(String);

impl LoopDevice {
    /// Returns `None`, and reports the test as skipped, without loop devices or the right to use them.
    pub fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let made = made.expect("run losetup");
        if !made.status.success() {
            skipped(String::from_utf8_lossy(&made.stderr).trim());
            return None;
        }
        Some(Self(String::from_utf8_lossy(&made.stdout).trim().to_owned()))
    }

    pub fn path(&self) -> &str {
        &self.0
    }

    pub fn losetup(&self, option: &str) {
        let done = Command::new("losetup").arg(option).arg(&self.0).status();
        assert!(done.expect("run losetup").success(), "losetup {option}");
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.losetup("--detach");
    }
}
