//! A disk that is full when a checkpoint is to be saved.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::{assert_refused, cnn, done, run};
use crate::support::runs::{assert_same_files, checkpoints, results, resume, train};
use crate::support::{Scratch, skipped, small_data};

/// A small file system in memory, taken away at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Mounts it on a new folder; `None` where that is not allowed.
    fn mount(path: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(path);
        let mounted = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(path.to_owned()))
    }

    /// Fills it but for the last `left` bytes; returns the file that takes the space.
    fn fill(&self, left: usize) -> std::path::PathBuf {
        let ballast = self.0.join("ballast");
        let page = vec![0; 4096];
        let mut file = std::fs::File::create(&ballast).unwrap();
        let mut written = 0;
        while std::io::Write::write_all(&mut file, &page).is_ok() {
            written += page.len();
        }
        file.set_len((written - left) as u64).unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_once_there_is_space() {
    let folder = Scratch::new();
    let Some(disk) = SmallDisk::mount(&folder.join("disk"), "8m") else {
        skipped("this user may not mount a file system");
        return;
    };
    let data = folder.join("data");
    small_data::write(&data, 120, 40);
    let path = disk.0.join("run");
    train("lenet5", &data, &path, &["training.epochs=1", "model.dropout=0.2"]);
    let before = checkpoints(&path);
    let size: usize = before.values().map(Vec::len).sum::<usize>() / 2;

    // There is space for some lines, and for half a checkpoint.
    let ballast = disk.fill(size / 2);
    let name = path.display().to_string();
    let failed = run(&mut cnn(["train", "--quiet", "--resume", &name, "--epochs", "3"]));
    assert_refused(&failed, 1, &["the disk is full", &name, "is kept"]);
    assert_same_files(&checkpoints(&path), &before, "after the disk was full");
    done(["eval", &name, "--checkpoint", "last"]);

    // Not even for lines.
    std::fs::remove_file(&ballast).unwrap();
    let ballast = disk.fill(0);
    let failed = run(&mut cnn(["train", "--quiet", "--resume", &name, "--epochs", "3"]));
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.lines().count() <= 2, "{}", failed.stderr);
    assert_same_files(&checkpoints(&path), &before, "after the disk was quite full");

    std::fs::remove_file(&ballast).unwrap();
    resume(&path, &["--epochs", "3"]);
    let undisturbed = folder.join("undisturbed");
    train("lenet5", &data, &undisturbed, &["training.epochs=3", "model.dropout=0.2"]);
    assert_same_files(&checkpoints(&path), &checkpoints(&undisturbed), "once there was space");
    assert_eq!(results(&path), results(&undisturbed));
}

#[test]
fn a_disk_that_fills_up_during_a_run_ends_it_with_one_sentence() {
    let folder = Scratch::new();
    let Some(disk) = SmallDisk::mount(&folder.join("disk"), "3m") else {
        skipped("this user may not mount a file system");
        return;
    };
    let data = folder.join("data");
    small_data::write(&data, 120, 40);
    let path = disk.0.join("run");
    // More checkpoints than the disk holds.
    let settings = ["training.epochs=30", "training.save_every=1", "training.keep=1000"];
    let failed = crate::support::runs::try_train("lenet5", &data, &path, &settings);
    assert_refused(&failed, 1, &["the disk is full", "checkpoints"]);
    done(["eval", &path.display().to_string(), "--checkpoint", "last"]);
}
