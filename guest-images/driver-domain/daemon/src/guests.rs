//! Files that say which devices have a guest, for scripts of the driver domain: one for each, its channel's number, from the start of
//! the guest's first life until it has ended for good. They outlive the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::log::log;

/// The folder with the files.
#[derive(Debug, Default)]
pub struct Guests {
    folder: Option<PathBuf>,
    /// Files of a daemon before this one are gone through once.
    there: Option<BTreeSet<u16>>,
}

impl Guests {
    /// In this folder, which is made.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        match fs::create_dir_all(&folder) {
            Ok(()) => Self { folder: Some(folder), there: None },
            Err(error) => {
                log!("cannot make {}: {error}; nobody is told there which guests live", folder.display());
                Self::default()
            }
        }
    }

    /// The channels that have a file, perhaps of a daemon's before this one.
    fn there(&mut self) -> BTreeSet<u16> {
        self.there.clone().unwrap_or_else(|| {
            let folder = self.folder.iter().flat_map(fs::read_dir);
            let names = folder.flatten().flatten();
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
    }

    /// Whether a channel has a file.
    pub fn has(&mut self, channel: u16) -> bool {
        let there = self.there();
        let has = there.contains(&channel);
        self.there = Some(there);
        has
    }

    /// These channels have a guest now. New files come before old ones go, so that the folder is not empty between.
    pub fn update(&mut self, channels: &BTreeSet<u16>) {
        let there = self.there();
        if let Some(folder) = &self.folder {
            for channel in channels.difference(&there) {
                // What cannot be written is written by the next daemon.
                let _ = fs::write(folder.join(channel.to_string()), "");
            }
            for channel in there.difference(channels) {
                let _ = fs::remove_file(folder.join(channel.to_string()));
            }
        }
        self.there = Some(channels.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_the_guests() {
        let folder = std::env::temp_dir().join(format!("caisson-guests-{}", std::process::id()));
        let names = || {
            let names = fs::read_dir(&folder)
                .unwrap()
                .flatten()
                .map(|entry| entry.file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let mut guests = Guests::in_folder(&folder);
        guests.update(&BTreeSet::from([32, 65]));
        assert_eq!(names(), BTreeSet::from(["32".into(), "65".into()]));
        // The next daemon finds the files.
        let mut guests = Guests::in_folder(&folder);
        assert!(guests.has(32) && guests.has(65) && !guests.has(66));
        guests.update(&BTreeSet::from([65, 66]));
        assert_eq!(names(), BTreeSet::from(["65".into(), "66".into()]));
        guests.update(&BTreeSet::new());
        assert!(names().is_empty());
        fs::remove_dir(&folder).unwrap();
    }
}
