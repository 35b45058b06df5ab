//! The number of disks, queues and requests in flight of a load.

/// Number of disks, of queues per disk, and of requests in flight per queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shape {
    pub(crate) queues: u16,
    pub(crate) iodepth: u16,
    pub(crate) disks: u16,
}

impl Shape {
    pub(crate) const fn new(queues: u16, iodepth: u16, disks: u16) -> Self {
        Self {
            queues,
            iodepth,
            disks,
        }
    }

    /// Number of queues, over all disks.
    pub(crate) fn lanes(self) -> usize {
        usize::from(self.queues) * usize::from(self.disks)
    }

    /// Number of requests in flight, over all queues.
    pub(crate) fn in_flight(self) -> usize {
        self.lanes() * usize::from(self.iodepth)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.queues, self.iodepth)?;
        if self.disks > 1 {
            write!(f, "x{}", self.disks)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u16>, _> = text.split('x').map(str::parse).collect();
        let shape = match numbers.as_deref() {
            Ok(&[queues, iodepth]) => Self::new(queues, iodepth, 1),
            Ok(&[queues, iodepth, disks]) => Self::new(queues, iodepth, disks),
            _ => {
                return Err(format!(
                    "{text:?} is not QUEUESxIODEPTH, e.g. 8x64, or QUEUESxIODEPTHxDISKS"
                ));
            }
        };
        // A request takes three descriptors (there are no indirect tables), and a ring has at most 1024.
        let ranges = [(shape.queues, 256), (shape.iodepth, 341), (shape.disks, 256)];
        if ranges.iter().any(|&(value, most)| value < 1 || value > most) {
            return Err(format!(
                "{text} is out of range: 1 to 256 queues, iodepth 1 to 341, 1 to 256 disks"
            ));
        }
        Ok(shape)
    }
}
