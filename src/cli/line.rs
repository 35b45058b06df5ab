//! From a command line to the settings of the daemon.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};

use super::advice::{self, Form};
use super::choices::Aio;
use super::config::Config;
use super::monitor::monitor_paths;
use super::options::Cli;
use super::{long, short};
use crate::daemon::{Error, Settings};
use crate::engine;

impl Cli {
    /// Checks rules that involve several options.
    ///
    /// # Errors
    /// An option is missing, or options contradict each other. The error is one line that names them and says what to
    /// do.
    pub fn check(&self) -> Result<(), String> {
        if !self.sandbox_path.is_empty() && self.monitor.is_empty() && self.take_over.is_none() {
            return Err(
                "--sandbox-path is for disks that QMP clients add: add --chardev and --monitor, or leave it out".to_owned(),
            );
        }
        if self.take_over.is_some() && self.short_option.is_none() {
            return Ok(());
        }
        if self.form() == Form::Long {
            return match &self.short_option {
                Some(option) => Err(format!(
                    "--{option} is for the one disk of --blk-file: with --export, say the same with --object, --blockdev \
                     and --export"
                )),
                None => Ok(()),
            };
        }
        if self.blk_file.is_none() && self.null.is_none() && !self.print_capabilities {
            if let (Some(file), None) = (&self.config, &self.short_option) {
                return Err(format!(
                    "{}: no disk: [[blockdev]] and [[export]] are missing (in JSON \"blockdev\": [{{...}}] and \"export\": \
                     [{{...}}]); a file without them needs the options of a disk, such as --socket-path and --blk-file",
                    file.display()
                ));
            }
            let socket = match (&self.socket_path, self.fd) {
                (None, None) => "--socket-path and ",
                _ => "",
            };
            return Err(format!(
                "{socket}--blk-file missing: use e.g. --socket-path disk.sock --blk-file disk.img \
                 ('truncate -s 10G disk.img' makes an image)"
            ));
        }
        let engine = match self.aio {
            Aio::IoUring | Aio::Native if self.null.is_some() => Some(engine::Error::NoFile),
            Aio::Native if !self.direct => Some(engine::Error::NativeBuffered),
            _ => None,
        };
        if let Some(error) = engine {
            return Err(advice::explain_engine(&error));
        }
        if self.thread_pool_min > self.thread_pool_max {
            return Err(format!(
                "--thread-pool-min {} is above --thread-pool-max {}: lower one or raise the other",
                self.thread_pool_min, self.thread_pool_max
            ));
        }
        self.queue_iothreads()?;
        self.cpus()?;
        Ok(())
    }

    /// Reads a command line, and the configuration file that it names.
    ///
    /// # Errors
    /// An option is unknown or has a wrong value, or the file cannot be read or has a mistake.
    pub fn from_line(
        line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let refusal = |error: String| Self::command().error(ErrorKind::ValueValidation, error);
        let line: Vec<OsString> = line.into_iter().map(Into::into).collect();
        let mut matches = Self::command().try_get_matches_from(&line)?;
        let file = matches.get_one::<PathBuf>("config");
        let config = file.map(|file| Config::read(file)).transpose().map_err(refusal)?;
        let config = config.unwrap_or_default();
        let of_file: Vec<OsString> = config.arguments(&matches).map(OsString::from).collect();
        if !of_file.is_empty() {
            let (program, options) = line.split_at(1.min(line.len()));
            matches = Self::command().try_get_matches_from([program, &of_file, options].concat())?;
        }
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.short_option = short::option(&matches);
        (cli.operations, cli.places) = config.operations.into_iter().unzip();
        cli.operations
            .extend(long::operations(&matches).map_err(refusal)?);
        cli.chardev.splice(..0, config.chardevs);
        cli.monitor.splice(..0, config.monitors);
        Ok(cli)
    }

    /// Explains in one line why the daemon failed, and what to do. Returns the exit status as well.
    pub fn explain(&self, error: &Error) -> (String, u8) {
        let place = match error {
            Error::Operation { number, .. } => self.places.get(*number),
            _ => None,
        };
        advice::explain(error, self.form(), place)
    }

    /// Returns the settings of the daemon.
    ///
    /// # Errors
    /// The errors of [`check`](Self::check).
    pub fn settings(&self) -> Result<Settings, String> {
        self.check()?;
        Ok(Settings {
            monitors: monitor_paths(&self.chardev, &self.monitor)?,
            metrics: self.metrics.clone(),
            operations: match self.form() {
                // Such a process makes nothing.
                Form::Short if self.blk_file.is_none() && self.null.is_none() => Vec::new(),
                Form::Short => short::operations(self)?,
                Form::Long => self.operations.clone(),
            },
            daemonize: self.daemonize,
            pid_file: self.pidfile.clone(),
            sandbox: self.sandbox.into(),
            sandbox_paths: self.sandbox_path.clone(),
            sandbox_hint: "name its directory with --sandbox-path at the next start, or ",
            user: self.user.clone(),
            hand_over: self.hand_over.clone(),
            take_over: self.take_over.clone(),
            fail_point: self.fail_take_over,
            print_statistics: self.stats,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Notify, one_line};

    fn parse(args: &[&str]) -> Result<Cli, String> {
        let all = ["vhost-user-blk", "--socket-path", "s", "--blk-file", "f"];
        let cli = Cli::from_line(all.iter().chain(args)).map_err(|e| one_line(&e))?;
        cli.check()?;
        Ok(cli)
    }

    #[test]
    fn defaults_match_qemu() {
        let cli = parse(&[]).unwrap();
        assert_eq!((cli.num_queues, cli.iothreads, cli.poll_max_ns), (1, 1, 32768));
        assert_eq!((cli.thread_pool_min, cli.thread_pool_max), (0, 64));
        assert_eq!((cli.notify, cli.aio), (Notify::Batch, Aio::Auto));
    }

    #[test]
    fn bad_options_give_one_line_that_names_them() {
        for bad in [
            &["--num-queues", "0"][..],
            &["--num-queues", "257"],
            &["--num-queues", "x"],
            &["--num-queues", "-1"],
            &["--queue-size", "0"],
            &["--queue-size", "100"],
            &["--queue-size", "2048"],
            &["--iothreads", "0"],
            &["--thread-pool-max", "0"],
            &["--thread-pool-min", "65"],
            &["--null", "1G"],
            &["--aio", "aio"],
            &["--notify", "never"],
            &["--serial", "123456789012345678901"],
            &["--fd", "3"],
            &["--poll-max-ns", "-1"],
            &["--request-merging", "maybe"],
            &["--format", "vmdk"],
            &["--logical-block-size", "1000"],
            &["--log-level", "loud"],
            &["--iothread-vq-mapping", "0:1"],
            &["--iothread-vq-mapping", "1:0"],
            &["--iothread-vq-mapping", "0"],
            &["--iothread-cpus", "1:0"],
            &["--sandbox", "maybe"],
            &["--socket-mode", "0800"],
            &["--socket-mode", "1777"],
            &["--socket-mode", "rw"],
            &["--no-such-option"],
        ] {
            let error = parse(bad).unwrap_err();
            let name = bad[0].split('=').next().unwrap_or_default();
            assert!(!error.contains('\n') && error.contains(name), "{bad:?}: {error}");
        }
    }

    #[test]
    fn bad_numbers_name_option_and_range() {
        for bad in ["0", "-1", "257", "70000", "99999999999999999999", "x", "1.5", ""] {
            for option in ["--num-queues", "--iothreads"] {
                let error = parse(&[&format!("{option}={bad}")]).unwrap_err();
                assert!(
                    error.contains(option) && error.contains("a number from 1 to 256"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn invalid_socket_descriptors_and_paths_are_refused() {
        let refusal = |option: &str| {
            let line = ["vhost-user-blk", "--blk-file", "f", option];
            one_line(&Cli::try_parse_from(line).unwrap_err())
        };
        assert!(refusal("--fd=0").contains("standard input"));
        assert!(refusal("--fd=-1").contains("3 or above"));
        let long = refusal(&format!("--socket-path={}", "x".repeat(108)));
        assert!(
            long.contains("--socket-path") && long.contains("108 bytes long") && long.contains("at most 107")
        );
        let longest = format!("--socket-path={}", "x".repeat(107));
        assert!(Cli::try_parse_from(["vhost-user-blk", "--blk-file", "f", &longest]).is_ok());
    }

    #[test]
    fn null_disk_replaces_the_image() {
        let null = ["vhost-user-blk", "--socket-path", "s", "--null", "1G"];
        assert_eq!(Cli::try_parse_from(null).unwrap().null, Some(1 << 30));
        assert!(Cli::try_parse_from(null.iter().chain(&["--direct"])).is_err());
        let later = Cli::try_parse_from(null.iter().chain(&["--null-latency-ns", "1000"])).unwrap();
        assert_eq!(later.null_latency_ns, Some(1000));
        assert!(Cli::try_parse_from(null.iter().chain(&["--null-latency-ns", "60000000001"])).is_err());
        let file = [
            "vhost-user-blk",
            "--socket-path",
            "s",
            "--blk-file",
            "f",
            "--null-latency-ns",
            "1",
        ];
        assert!(Cli::try_parse_from(file).is_err());
    }

    #[test]
    fn print_capabilities_needs_no_other_option() {
        assert!(Cli::try_parse_from(["vhost-user-blk", "--print-capabilities"]).is_ok());
        let nothing = Cli::try_parse_from(["vhost-user-blk"]).unwrap();
        assert!(nothing.check().unwrap_err().contains("--blk-file"));
    }
}
