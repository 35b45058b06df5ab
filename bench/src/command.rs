//! Builds the command line that starts each backend.

use std::path::Path;

use crate::candidate::{Candidate, Kind, QSD};
use crate::image::Image;

/// The socket, the image and the number of queues that a command line is built for.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) image: &'a Image,
    pub(crate) queues: u16,
}

impl Target<'_> {
    /// Returns the program that starts `candidate`, and its arguments. A limit has none.
    pub(crate) fn command_line(&self, candidate: &Candidate) -> Vec<String> {
        match &candidate.kind {
            Kind::Ours { binary, options } => self.ours(binary, options),
            Kind::Qsd { aio } => self.qsd(aio),
            Kind::Plain { each } => self.plain(*each),
            Kind::Command { words } => self.filled_in(words),
            Kind::Limit(_) => Vec::new(),
        }
    }

    /// Returns the image's path, or `null:SIZE`, which the plain backend understands.
    fn image(&self) -> String {
        match self.image {
            Image::File { path, .. } => path.display().to_string(),
            Image::Null { size } => format!("null:{size}"),
        }
    }

    fn ours(&self, binary: &Path, options: &[String]) -> Vec<String> {
        let mut line = vec![
            binary.display().to_string(),
            format!("--socket-path={}", self.socket.display()),
            format!("--num-queues={}", self.queues),
        ];
        match self.image {
            Image::File { path, direct } => {
                line.push(format!("--blk-file={}", path.display()));
                line.extend(direct.then(|| "--direct".to_owned()));
            }
            Image::Null { size } => line.push(format!("--null={size}")),
        }
        line.extend_from_slice(options);
        line
    }

    fn qsd(&self, aio: &str) -> Vec<String> {
        let node = match self.image {
            Image::File { path, direct } => {
                let direct = if *direct { "on" } else { "off" };
                format!(
                    "driver=file,node-name=f,filename={},aio={aio},cache.direct={direct}",
                    path.display()
                )
            }
            Image::Null { size } => format!("driver=null-co,node-name=f,size={size},read-zeroes=off"),
        };
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues={},\
             iothread=io",
            self.socket.display(),
            self.queues
        );
        let words = [
            QSD,
            "--blockdev",
            &node,
            "--object",
            "iothread,id=io",
            "--export",
            &export,
        ];
        words.map(str::to_owned).to_vec()
    }

    fn plain(&self, each: bool) -> Vec<String> {
        let mut line = vec![
            std::env::current_exe().unwrap_or_default().display().to_string(),
            "--plain".to_owned(),
            self.socket.display().to_string(),
            self.image(),
            self.queues.to_string(),
        ];
        line.extend(each.then(|| "each".to_owned()));
        line
    }

    fn filled_in(&self, words: &[String]) -> Vec<String> {
        let fill = |word: &String| {
            word.replace("{socket}", &self.socket.display().to_string())
                .replace("{image}", &self.image())
                .replace("{queues}", &self.queues.to_string())
        };
        words.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Daemon;

    #[test]
    fn a_template_gets_socket_image_and_queues() {
        let candidate =
            Candidate::parse("mine=serve {socket} -f {image} --n={queues}", &Daemon::default()).unwrap();
        let image = Image::File {
            path: "/i".into(),
            direct: false,
        };
        let target = Target {
            socket: Path::new("/s"),
            image: &image,
            queues: 4,
        };
        assert_eq!(candidate.name, "mine");
        assert_eq!(
            target.command_line(&candidate),
            ["serve", "/s", "-f", "/i", "--n=4"]
        );
    }

    #[test]
    fn a_null_disk_has_a_size_and_no_path() {
        let image = Image::Null { size: 4096 };
        let target = Target {
            socket: Path::new("/s"),
            image: &image,
            queues: 1,
        };
        let ours = target.ours(Path::new("/bin/sh"), &[]);
        assert!(
            ours.contains(&"--null=4096".to_owned()) && !ours.iter().any(|word| word.contains("blk-file"))
        );
        assert!(target.qsd("threads").join(" ").contains("driver=null-co"));
    }
}
