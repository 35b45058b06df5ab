//! Linux guests under QEMU.

mod changes;
mod disk;
mod recovery;
mod trouble;
