//! Maps from IOThreads to the queues they serve or to the CPUs they run on: `0:0,1;1:2-3`.

use std::str::FromStr;

/// Lists of numbers by IOThread, as given on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoThreadMap(Vec<(u16, Vec<u16>)>);

impl FromStr for IoThreadMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(';')
            .map(parse_entry)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn parse_entry(text: &str) -> Result<(u16, Vec<u16>), String> {
    let (iothread, list) = text
        .split_once(':')
        .ok_or_else(|| format!("'{text}' is not IOTHREAD:N,N or IOTHREAD:N-N"))?;
    let ranges = list.split(',').map(parse_range).collect::<Result<Vec<_>, _>>()?;
    Ok((parse_number(iothread)?, ranges.into_iter().flatten().collect()))
}

fn parse_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = parse_number(first)?..=parse_number(last)?;
    if range.is_empty() {
        Err(format!("'{text}' runs backwards"))
    } else {
        Ok(range)
    }
}

fn parse_number(text: &str) -> Result<u16, String> {
    let number = text.trim().parse();
    number.map_err(|_| format!("'{text}' is not a number from 0 to {}", u16::MAX))
}

impl IoThreadMap {
    /// Returns the IOThread of each of the `queues` queues.
    ///
    /// # Errors
    /// The map does not name each queue exactly once, or it names an unknown IOThread.
    pub fn queues(&self, queues: u16, iothreads: u16) -> Result<Vec<u16>, String> {
        let mut owners = vec![None; queues.into()];
        for (iothread, list) in self.checked(iothreads)? {
            for queue in list {
                let owner = owners.get_mut(usize::from(*queue)).ok_or_else(|| {
                    format!("queue {queue} does not exist: they count from 0, and --num-queues is {queues}")
                })?;
                if owner.replace(*iothread).is_some() {
                    return Err(format!("queue {queue} is named twice"));
                }
            }
        }
        let missing = owners.iter().position(Option::is_none);
        match missing {
            Some(queue) => Err(format!(
                "queue {queue} has no IOThread: each of the {queues} queues needs one"
            )),
            None => Ok(owners.into_iter().flatten().collect()),
        }
    }

    /// Returns the entries after checking that all their IOThreads exist.
    ///
    /// # Errors
    /// The map names an unknown IOThread.
    pub fn checked(&self, iothreads: u16) -> Result<&[(u16, Vec<u16>)], String> {
        match self.0.iter().find(|(iothread, _)| *iothread >= iothreads) {
            Some((iothread, _)) => Err(format!(
                "IOThread {iothread} does not exist: they count from 0, and --iothreads is {iothreads}"
            )),
            None => Ok(&self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(map: &str) -> Result<Vec<u16>, String> {
        map.parse::<IoThreadMap>()?.queues(4, 2)
    }

    #[test]
    fn every_queue_gets_the_iothread_that_names_it() {
        assert_eq!(queues("0:0,1;1:2,3"), Ok(vec![0, 0, 1, 1]));
        assert_eq!(queues("1:0-2;0:3"), Ok(vec![1, 1, 1, 0]));
        assert_eq!(queues("0:3,0;1:1;0:2"), Ok(vec![0, 1, 0, 0]));
    }

    #[test]
    fn ambiguous_or_malformed_maps_are_refused() {
        for bad in [
            "",
            "0",
            "0:",
            "0:0-3;1:2",
            "0:0-2",
            "0:0-4",
            "2:0-3",
            "0:3-0",
            "x:0-3",
            "0:a",
            "0:0-3;",
            "-1:0-3",
            "0:0-70000",
        ] {
            assert!(queues(bad).is_err(), "{bad}");
        }
    }
}
