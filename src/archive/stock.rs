//! What the archive's folder holds: counted once at start, then kept up with every write, so that
//! the budget holds without walking the folder again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{append_line, write_whole};

/// Files and folders are counted in blocks of this many bytes, as most file systems keep them.
pub const BLOCK: u64 = 4096;
/// Ends the name of a file that is being written.
pub const HALF_WRITTEN: &str = ".part";

const LONGEST_LINE: u64 = 1 << 20;

/// The bytes that a file of `length` takes on the disk.
pub fn on_disk(length: u64) -> u64 {
    length.div_ceil(BLOCK) * BLOCK
}

/// A part's two pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Picture,
    Map,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Picture, Kind::Map];

    fn file_name(self, part: u64) -> String {
        match self {
            Kind::Picture => format!("{part}.png"),
            Kind::Map => format!("{part}_map.png"),
        }
    }

    fn parse(name: &str) -> Option<(u64, Kind)> {
        let stem = name.strip_suffix(".png")?;
        let (part, kind) = match stem.strip_suffix("_map") {
            Some(part) => (part, Kind::Map),
            None => (stem, Kind::Picture),
        };
        let part = part.parse().ok()?;
        // Only names that this room writes: "007.png" or "+7.png" is somebody else's file.
        (kind.file_name(part) == name).then_some((part, kind))
    }
}

pub struct Stock {
    folder: PathBuf,
    /// By name, which is also by age.
    days: BTreeMap<String, Day>,
    /// Days whose folder had to stay for somebody else's files; counted as foreign.
    husks: BTreeSet<String>,
    bytes: u64,
    /// Of these, what `remove_oldest` never touches.
    foreign_bytes: u64,
}

#[derive(Default)]
struct Day {
    /// Bytes of each part's picture and map; 0: not there.
    parts: BTreeMap<u64, [u64; 2]>,
    /// Length of each list of the day.
    lists: BTreeMap<String, u64>,
}

impl Stock {
    /// Walks the folder, removes half-written files and repairs lists that end in half a line.
    /// Files that are not the archive's own count, but are never removed.
    pub fn count(folder: &Path) -> Result<Stock> {
        let mut stock = Stock {
            folder: folder.to_owned(),
            days: BTreeMap::new(),
            husks: BTreeSet::new(),
            bytes: BLOCK,
            foreign_bytes: BLOCK,
        };
        for entry in read_folder(folder)? {
            let is_day = entry.is_folder && is_day(&entry.name);
            if is_day {
                stock.count_day(&entry.name)?;
            } else {
                stock.count_foreign(&folder.join(&entry.name), &entry)?;
            }
        }
        Ok(stock)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All that is in the folder, the folder itself included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What stays when all parts and lists are removed.
    pub fn foreign_bytes(&self) -> u64 {
        self.foreign_bytes
    }

    /// Makes the day's folder if it is not there.
    pub fn open_day(&mut self, day: &str) -> Result<()> {
        let folder = self.folder.join(day);
        // Asked every time: somebody may have cleared the folder by hand.
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        if !self.days.contains_key(day) {
            self.days.insert(day.to_owned(), Day::default());
            if !self.husks.contains(day) {
                self.bytes += BLOCK;
            }
        }
        Ok(())
    }

    /// Writes one of a part's pictures.
    pub fn add(&mut self, day: &str, part: u64, kind: Kind, content: &[u8]) -> Result<()> {
        write_whole(&self.folder.join(day).join(kind.file_name(part)), content)?;
        let bytes = on_disk(content.len() as u64);
        let kept = self.days.entry(day.to_owned()).or_default().parts.entry(part).or_default();
        let before = std::mem::replace(&mut kept[kind as usize], bytes);
        self.bytes = self.bytes - before + bytes;
        Ok(())
    }

    /// Appends a line to one of the day's lists.
    pub fn append(&mut self, day: &str, list: &str, line: &[u8]) -> Result<()> {
        append_line(&self.folder.join(day).join(list), line)?;
        let lists = &mut self.days.entry(day.to_owned()).or_default().lists;
        let length = lists.entry(list.to_owned()).or_default();
        let before = on_disk(*length);
        *length += line.len() as u64;
        self.bytes = self.bytes - before + on_disk(*length);
        Ok(())
    }

    /// Removes the oldest thing: the lowest part of the oldest day, and a day's lists and folder
    /// after its last part. False: there is nothing left to remove.
    pub fn remove_oldest(&mut self) -> Result<bool> {
        let Some(mut oldest) = self.days.first_entry() else { return Ok(false) };
        let folder = self.folder.join(oldest.key());
        let day = oldest.get_mut();
        if let Some(part) = day.parts.first_entry() {
            for kind in Kind::ALL {
                if part.get()[kind as usize] > 0 {
                    remove(&folder.join(kind.file_name(*part.key())))?;
                }
            }
            self.bytes -= part.remove().iter().sum::<u64>();
        }
        if day.parts.is_empty() {
            while let Some(list) = day.lists.first_entry() {
                remove(&folder.join(list.key()))?;
                self.bytes -= on_disk(list.remove());
            }
            let (name, _) = oldest.remove_entry();
            let gone = fs::remove_dir(&folder).is_ok() || !folder.exists();
            if gone {
                self.bytes -= BLOCK;
                if self.husks.remove(&name) {
                    self.foreign_bytes -= BLOCK;
                }
            } else if self.husks.insert(name) {
                self.foreign_bytes += BLOCK;
            }
        }
        Ok(true)
    }

    fn count_foreign(&mut self, path: &Path, entry: &Entry) -> Result<()> {
        let bytes = bytes_below(path, entry)?;
        self.bytes += bytes;
        self.foreign_bytes += bytes;
        Ok(())
    }

    fn count_day(&mut self, day: &str) -> Result<()> {
        let folder = self.folder.join(day);
        let mut found = Day::default();
        self.bytes += BLOCK;
        for entry in read_folder(&folder)? {
            let path = folder.join(&entry.name);
            if entry.name.ends_with(HALF_WRITTEN) && !entry.is_folder {
                remove(&path)?;
            } else if let (Some((part, kind)), false) = (Kind::parse(&entry.name), entry.is_folder)
            {
                let bytes = on_disk(entry.length);
                // An empty picture was cut off by a power cut.
                if bytes == 0 {
                    remove(&path)?;
                    continue;
                }
                found.parts.entry(part).or_default()[kind as usize] = bytes;
                self.bytes += bytes;
            } else if entry.name.ends_with(".jsonl") && !entry.is_folder {
                let length = drop_half_line(&path)?;
                self.bytes += on_disk(length);
                found.lists.insert(entry.name, length);
            } else {
                self.count_foreign(&path, &entry)?;
            }
        }
        self.days.insert(day.to_owned(), found);
        Ok(())
    }
}

struct Entry {
    name: String,
    is_folder: bool,
    length: u64,
}

fn read_folder(folder: &Path) -> Result<Vec<Entry>> {
    let reading = || format!("reading {}", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let about = entry.metadata().with_context(reading)?;
        entries.push(Entry {
            name: entry.file_name().to_string_lossy().into_owned(),
            is_folder: about.is_dir(),
            length: about.len(),
        });
    }
    Ok(entries)
}

fn bytes_below(path: &Path, entry: &Entry) -> Result<u64> {
    if !entry.is_folder {
        return Ok(on_disk(entry.length));
    }
    let mut bytes = BLOCK;
    for entry in read_folder(path)? {
        bytes += bytes_below(&path.join(&entry.name), &entry)?;
    }
    Ok(bytes)
}

/// Cuts off what follows the last line end, and returns the length that is left.
fn drop_half_line(path: &Path) -> Result<u64> {
    drop_half_line_of(path).with_context(|| format!("repairing {}", path.display()))
}

fn drop_half_line_of(path: &Path) -> std::io::Result<u64> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    // No line is as long as this, so the last line end is in here, if there is one.
    let tail_from = length.saturating_sub(LONGEST_LINE);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_from))?;
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        file.set_len(tail_from + whole as u64)?;
    }
    Ok(tail_from + whole as u64)
}

/// Removes a file; one that is gone already is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `2026-05-04`
pub fn is_day(name: &str) -> bool {
    name.len() == 10
        && name.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_parts() {
        assert_eq!(Kind::parse("17.png"), Some((17, Kind::Picture)));
        assert_eq!(Kind::parse("17_map.png"), Some((17, Kind::Map)));
        for foreign in ["017.png", "+17.png", "a.png", "_map.png", "17.jpg", "17_mask.png"] {
            assert_eq!(Kind::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_dates_are_days() {
        assert!(is_day("2026-05-04"));
        for foreign in ["2026-5-04", "2026-05-041", "notes", "2026_05_04"] {
            assert!(!is_day(foreign), "{foreign}");
        }
    }
}
