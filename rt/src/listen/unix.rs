//! A Unix socket to listen on, and its file.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use socket2::{Domain, SockAddr, Socket, Type};

use super::{BACKLOG, persist};

/// Longest path of a Unix socket, in bytes: what `sockaddr_un` holds, less the final zero.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// The file of a Unix socket that this process listens on. Dropping it removes the file, unless another process has put
/// its own there meanwhile.
#[derive(Debug)]
pub struct UnixPath {
    path: PathBuf,
    identity: Identity,
}

/// Which file it is: device, inode and, since inodes are used again, the time of birth where the file system tells it.
type Identity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

/// Listens on a Unix socket at `path` whose file has the permissions `mode`, also if the file of a process that has ended
/// lies there.
///
/// Blocks for up to one second if somebody listens there, or is about to; call it on the main thread only.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if a process listens there; [`io::ErrorKind::AlreadyExists`] if something lies there that
/// is no socket, which is never removed; otherwise what the kernel says.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<(OwnedFd, UnixPath)> {
    persist(|| bind(path, mode))
}

fn bind(path: &Path, mode: u32) -> io::Result<(OwnedFd, UnixPath)> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    // Of two processes that find a file nobody listens on, the second must not remove what the first puts in its place.
    let lock = File::open(folder)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => io::ErrorKind::AddrInUse.into(),
        fs::TryLockError::Error(error) => error,
    })?;
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let listening = UnixPath {
        path: path.to_owned(),
        identity: identity(path)?,
    };
    // Nobody can connect before `listen`, so the permissions are never wider than they should be.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), listening))
}

/// Removes a socket's file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "the socket's file stays behind: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_mode_from_the_start_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, file) = bind_unix(&path, 0o600).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
        drop(listener);
    }

    #[test]
    fn a_file_that_nobody_listens_on_is_taken_over_and_one_that_somebody_does_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, file) = bind_unix(&path, 0o600).unwrap();
        let error = bind_unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // As a killed process leaves it.
        drop(listener);
        let (_second, second_file) = bind_unix(&path, 0o600).unwrap();
        // The first one's clean-up comes late and finds a file that is not its own.
        drop(file);
        UnixStream::connect(&path).unwrap();
        drop(second_file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = bind_unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error() {
        let path = std::env::temp_dir().join("x".repeat(UNIX_PATH_BYTES_MAX));
        assert!(bind_unix(&path, 0o600).is_err());
    }
}
