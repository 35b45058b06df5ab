//! The locks on images and their backing files, as QEMU sees them.

use testkit::daemon::run;

use super::support::{create, directory, qemu_img, serve, serve_writable, try_run};

#[test]
fn images_and_backing_files_are_locked_against_writers() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    create(dir, "", &["base", "1M"]);
    create(dir, "", &["-b", "base", "-F", "qcow2", "top"]);
    let (mut daemon, frontend) = serve(dir, "top", &["--follow-names"]);
    let write = |image| try_run(dir, "qemu-io", &["-f", "qcow2", "-c", "write 0 64k", image]);
    let resize = |image| try_run(dir, "qemu-img", &["resize", "-q", "-f", "qcow2", image, "2M"]);
    for image in ["base", "top"] {
        for refused in [write(image), resize(image)] {
            let told = refused.expect_err("the image is in use");
            assert!(told.contains("lock"), "{image}: {told}");
        }
        qemu_img(dir, &["info", image]);
        qemu_img(dir, &["check", "-q", image]);
    }
    drop(frontend);
    daemon.terminate();
    for image in ["base", "top"] {
        write(image).expect("nobody uses the image");
    }
}

#[test]
fn files_in_use_are_named_with_fitting_advice() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    create(dir, "", &["base", "1M"]);
    create(dir, "", &["-b", "base", "-F", "qcow2", "top"]);
    for (used, named) in [
        ("top", "top is in use"),
        ("base", "base, a file that top needs, is in use"),
    ] {
        let (daemon, _frontend) = serve_writable(dir, used, &["--follow-names"]);
        let options = [
            "--socket-path",
            "s",
            "--blk-file",
            "top",
            "--format",
            "qcow2",
            "--follow-names",
        ];
        let exit = run(&options, dir);
        let told = exit.output;
        assert!(!exit.status.success() && told.contains(named), "{told}");
        let holder = format!(
            "it is open in process {} (vhost-user-blk): end that first",
            daemon.pid()
        );
        assert!(told.contains(&holder), "{told}");
        assert!(!told.contains("--incoming"), "{told}");
    }
}

#[test]
fn images_that_are_written_have_one_user() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    create(dir, "", &["base", "1M"]);
    create(dir, "", &["-b", "base", "-F", "qcow2", "top"]);
    let (mut daemon, frontend) = serve_writable(dir, "top", &["--follow-names"]);
    let command =
        |image, options: &[&str]| try_run(dir, "qemu-io", &[&["-f", "qcow2"], options, &[image]].concat());
    for (image, options) in [
        ("top", &["-c", "write 0 64k"][..]),
        ("top", &["-r", "-c", "read 0 64k"]),
        ("base", &["-c", "write 0 64k"]),
    ] {
        let told = command(image, options).expect_err("the image is in use");
        assert!(told.contains("lock"), "{image}: {told}");
    }
    command("base", &["-r", "-c", "read 0 64k"]).expect("backing files are shared");
    command("top", &["-U", "-r", "-c", "read 0 64k"]).expect("force-share reads");
    drop(frontend);
    daemon.terminate();
    command("top", &["-c", "write 0 64k"]).expect("nobody uses the image");
}
