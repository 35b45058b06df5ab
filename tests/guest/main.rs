//! Linux guests under QEMU.

mod changes;
mod disk;
mod disks;
mod recovery;
mod trouble;
