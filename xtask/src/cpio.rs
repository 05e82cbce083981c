//! A writer of `newc` archives, the form in which Linux takes an initial RAM disk (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). Owners, times and inode numbers are fixed, so that the
//! same content gives the same bytes; device nodes need no privileges.

/// File type bits of a mode.
mod kind {
    pub(super) const MASK: u32 = 0o170_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const CHARACTER_DEVICE: u32 = 0o020_000;
    pub(super) const REGULAR: u32 = 0o100_000;
    pub(super) const LINK: u32 = 0o120_000;
}

/// An archive being written. Names are relative to the root and have no leading slash.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name, kind::DIRECTORY | mode, (0, 0), &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, kind::REGULAR | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, kind::LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, kind::CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    /// Ends the archive, padded to the 512 bytes that unpackers read at a time.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let links = if mode & kind::MASK == kind::DIRECTORY { 2 } else { 1 };
        self.bytes.extend_from_slice(b"070701");
        let (inode, user, group, time, checksum) = (self.entries, 0, 0, 0, 0);
        for word in [
            inode,
            mode,
            user,
            group,
            links,
            time,
            size(content.len()),
            0,
            0,
            device.0,
            device.1,
            size(name.len() + 1),
            checksum,
        ] {
            self.bytes.extend_from_slice(format!("{word:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self.entries += 1;
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of the header at `offset`, as numbers.
    fn header(bytes: &[u8], offset: usize) -> Vec<u32> {
        assert_eq!(&bytes[offset..offset + 6], b"070701");
        let field = |i: usize| std::str::from_utf8(&bytes[offset + 6 + 8 * i..offset + 14 + 8 * i]).unwrap();
        (0..13).map(|i| u32::from_str_radix(field(i), 16).unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_size_mode_and_padding() {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        let fields = header(&bytes, 0);
        assert_eq!((fields[1], fields[4], fields[6], fields[11]), (0o100_755, 1, 5, 5));
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
        // The next header starts on the next multiple of four.
        let trailer = header(&bytes, 124);
        assert_eq!((trailer[1], trailer[11]), (0, 11));
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn devices_links_and_directories_have_their_types() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755);
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.link("bin/sh", "busybox");
        let bytes = archive.finish();
        assert_eq!((header(&bytes, 0)[1], header(&bytes, 0)[4]), (0o040_755, 2));
        let console = header(&bytes, 116);
        assert_eq!((console[1], console[9], console[10]), (0o020_600, 5, 1));
        let link = header(&bytes, 116 + 124);
        assert_eq!((link[1], link[6]), (0o120_777, 7));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let build = || {
            let mut archive = Archive::new();
            archive.directory("bin", 0o755);
            archive.file("bin/x", 0o755, &[7; 1000]);
            archive.finish()
        };
        assert_eq!(build(), build());
    }
}
