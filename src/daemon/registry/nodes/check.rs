//! Which options fit which driver.

use super::super::error::{OperationError, refuse};
use crate::daemon::options::{AioOption, BlockdevOptions, DetectZeroes, Driver, ValueError};
use crate::engine;

/// Refuses options that do not fit the driver, and options that are not supported.
pub(super) fn check(options: &BlockdevOptions) -> Result<(), OperationError> {
    refuse_of_files(options)?;
    refuse_of_filters(options)?;
    refuse_of_servers(options)?;
    refuse_of_formats(options)?;
    check_values(options)
}

/// Refuses the options of files and null disks if the driver is another one.
fn refuse_of_files(options: &BlockdevOptions) -> Result<(), ValueError> {
    let file = matches!(options.driver, Driver::File | Driver::HostDevice);
    let null = matches!(options.driver, Driver::NullCo | Driver::NullAio);
    let raw = options.driver == Driver::Raw;
    refuse(&[
        ("filename", !file && options.filename.is_some()),
        ("locking", !file && options.locking.is_some()),
        ("aio", !file && options.aio.is_some()),
        ("aio-max-batch", !file && options.aio_max_batch.is_some()),
        ("mmap", !file && options.mmap.is_some()),
        ("size", !raw && !null && options.size.is_some()),
        (
            "x-probe",
            !file && !matches!(options.driver, Driver::Nbd | Driver::Rbd) && options.probe,
        ),
        ("latency-ns", !null && options.latency_ns.is_some()),
        ("read-zeroes", !null && options.read_zeroes.is_some()),
    ])
}

/// Refuses the options of nodes above others if the driver is another one.
fn refuse_of_filters(options: &BlockdevOptions) -> Result<(), ValueError> {
    let above = matches!(options.driver, Driver::Raw | Driver::Throttle | Driver::Qcow2);
    let throttle = options.driver == Driver::Throttle;
    refuse(&[
        ("file", !above && options.file.is_some()),
        (
            "offset",
            options.driver != Driver::Raw && options.offset.is_some(),
        ),
        ("throttle-group", !throttle && options.throttle_group.is_some()),
    ])
}

/// Refuses the options of network storage if the driver is another one.
fn refuse_of_servers(options: &BlockdevOptions) -> Result<(), ValueError> {
    let nbd = options.driver == Driver::Nbd;
    let rbd = options.driver == Driver::Rbd;
    refuse(&[
        ("server", !nbd && !rbd && options.server.is_some()),
        ("key-secret", !rbd && options.key_secret.is_some()),
        ("export", !nbd && options.export.is_some()),
        ("reconnect-delay", !nbd && options.reconnect_delay.is_some()),
        ("open-timeout", !nbd && options.open_timeout.is_some()),
        ("tls-creds", !nbd && options.tls_creds.is_some()),
        ("tls-hostname", !nbd && options.tls_hostname.is_some()),
        ("pool", !rbd && options.pool.is_some()),
        ("namespace", !rbd && options.namespace.is_some()),
        ("image", !rbd && options.image.is_some()),
        ("snapshot", !rbd && options.snapshot.is_some()),
        ("conf", !rbd && options.conf.is_some()),
        ("user", !rbd && options.user.is_some()),
    ])
}

/// Refuses the options of image formats if the driver is another one.
fn refuse_of_formats(options: &BlockdevOptions) -> Result<(), ValueError> {
    if options.driver == Driver::Qcow2 {
        return Ok(());
    }
    refuse(&[
        ("backing", options.backing.is_some()),
        ("data-file", options.data_file.is_some()),
        ("follow-names", options.follow_names.is_some()),
        ("cache-size", options.cache_size.is_some()),
        ("l2-cache-size", options.l2_cache_size.is_some()),
        ("l2-cache-entry-size", options.l2_cache_entry_size.is_some()),
        ("refcount-cache-size", options.refcount_cache_size.is_some()),
        ("cache-clean-interval", options.cache_clean_interval.is_some()),
    ])
}

/// Refuses values, and options that do not fit each other.
fn check_values(options: &BlockdevOptions) -> Result<(), OperationError> {
    let filename = options.filename.as_ref();
    if filename.is_some_and(|path| path.as_os_str().is_empty()) {
        return Err(OperationError::Value(ValueError::Type {
            path: "filename".to_owned(),
            expected: "the path of a file or a device".to_owned(),
        }));
    }
    if options.aio == Some(AioOption::Native) && !options.cache.is_direct() {
        return Err(engine::Error::NativeBuffered.into());
    }
    if options.tls_hostname.is_some() && options.tls_creds.is_none() {
        return Err(OperationError::HostnameWithoutCreds);
    }
    if options.shares_writing() && !options.is_read_only() {
        return Err(OperationError::ForceShare);
    }
    if options.detect_zeroes == DetectZeroes::Unmap && !options.unmaps() {
        return Err(OperationError::DetectWithoutDiscard);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filename_is_named() {
        let options = |path: &str| BlockdevOptions {
            filename: Some(path.into()),
            ..BlockdevOptions::new(Driver::File)
        };
        let told = check(&options("")).expect_err("refused").to_string();
        assert_eq!(
            told,
            "Parameter 'filename' expects the path of a file or a device"
        );
        assert!(check(&options("x")).is_ok());
    }
}
