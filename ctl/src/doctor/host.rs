//! This machine: the kernel and its limits.

use std::fs;

use super::finding::Finding;

/// The oldest kernel that the daemon starts on.
const KERNEL: (u32, u32) = (5, 8);

pub(super) fn look() -> Vec<Finding> {
    let checks = [kernel, io_uring, landlock, aio_requests];
    checks.into_iter().filter_map(|check| check()).collect()
}

fn kernel() -> Option<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let old = version(&release)? < KERNEL;
    old.then(|| {
        Finding::error(
            format!("Linux {release} is too old"),
            "the daemon needs Linux 5.8 or newer",
        )
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn io_uring() -> Option<Finding> {
    // SAFETY: a null pointer is refused (EFAULT) after the kernel has checked that io_uring may be used.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    let cure = match (result, errno) {
        (-1, Some(libc::ENOSYS)) => "use a kernel with io_uring, or --aio threads",
        (-1, Some(libc::EPERM)) => {
            "allow it (sysctl kernel.io_uring_disabled=0, or the container's seccomp profile)"
        }
        _ => return None,
    };
    Some(Finding::warning(
        "io_uring cannot be used, so disks with O_DIRECT are slower",
        cure,
    ))
}

fn landlock() -> Option<Finding> {
    const VERSION: u32 = 1;
    // SAFETY: only asks for the version; the null pointer is not used.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            VERSION,
        )
    };
    (result < 0).then(|| {
        Finding::warning(
            "the kernel has no Landlock, so --sandbox on is refused",
            "add 'landlock' to the kernel's option lsm=, or accept --sandbox auto",
        )
    })
}

/// Linux AIO has a limit for the whole machine.
fn aio_requests() -> Option<Finding> {
    let number = |name: &str| {
        fs::read_to_string(format!("/proc/sys/fs/{name}"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let (used, most) = (number("aio-nr")?, number("aio-max-nr")?);
    (used.saturating_mul(10) > most.saturating_mul(9)).then(|| {
        Finding::warning(
            format!("{used} of {most} requests for Linux AIO are reserved on this machine"),
            "raise fs.aio-max-nr (sysctl), or use --aio io_uring",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.1.0-44-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert!(version("5.10.0").unwrap() > KERNEL && version("5.4.0").unwrap() < KERNEL);
    }
}
