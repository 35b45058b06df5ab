//! Makes the manual pages and shell completions of both programs: `cargo run -p pages -- DIRECTORY`.
//!
//! A program of its own, so that neither program depends on the crates that do this.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use vhost_user_blk::cli::Cli;

fn main() -> Result<()> {
    let directory = env::args_os().nth(1).context("usage: pages DIRECTORY")?;
    write(Path::new(&directory))
}

/// Writes the pages and completions, under the names that packages use.
fn write(directory: &Path) -> Result<()> {
    for (mut command, text) in [
        (Cli::command(), include_str!("vhost-user-blk.roff")),
        (
            vhost_user_blkctl::command(),
            include_str!("vhost-user-blkctl.roff"),
        ),
    ] {
        let name = command.get_name().to_owned();
        write_pages(directory, &command, text)?;
        for (shell, file) in [
            (Shell::Bash, format!("{name}.bash")),
            (Shell::Zsh, format!("_{name}")),
            (Shell::Fish, format!("{name}.fish")),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut script);
            put(directory, &file, &script)?;
        }
    }
    Ok(())
}

/// Writes the page of a program, with `text` at its end. The options of all subcommands are on the same page.
fn write_pages(directory: &Path, command: &Command, text: &str) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).manual("vhost-user-blk");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut built = command.clone();
    built.build();
    let subcommands = built
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help");
    for subcommand in subcommands {
        page.extend(
            format!(
                ".SH \"{} {}\"\n",
                name.to_uppercase(),
                subcommand.get_name().to_uppercase()
            )
            .bytes(),
        );
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    page.extend(text.bytes());
    put(directory, &format!("{name}.1"), &page)
}

fn put(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = directory.join(name);
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_have_all_options() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let page = read("vhost-user-blk.1");
        for part in [
            ".TH vhost-user-blk",
            "blk\\-file",
            "log\\-format",
            "SIGHUP",
            ".SH FILES",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let page = read("vhost-user-blkctl.1");
        for part in ["DOCTOR", "throttle\\-group", "VHOST_USER_BLK_QMP"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(read("vhost-user-blk.bash").contains("--socket-path"));
        assert!(read("_vhost-user-blkctl").contains("doctor"));
        assert!(read("vhost-user-blkctl.fish").contains("trace"));
    }
}
