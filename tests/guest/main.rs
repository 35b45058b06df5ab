//! Linux guests under QEMU.

mod changes;
mod cluster;
mod disk;
mod disks;
mod network;
mod recovery;
mod trouble;
