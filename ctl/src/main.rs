//! The program; see the library.

fn main() -> std::process::ExitCode {
    vhost_user_blkctl::main()
}
