//! Disks in a Ceph cluster: a monitor and an OSD that these tests start.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod cluster;
mod data;
mod fencing;
mod mistakes;
mod options;
mod reopened;
mod take_over;
mod trouble;
