//! Files of the Hugging Face hub, through its cache on disk.
//!
//! The variables are those of `huggingface_hub`: `HF_HOME`, `HF_HUB_CACHE` (where the cache is), `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
//! What is in the cache is not asked for again.

use std::env;
use std::path::PathBuf;

use anyhow::Result;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::{bad_input, bail_input};

/// A repository of models, and perhaps one of its files.
pub struct Repository {
    /// `ORG/NAME`.
    pub name: String,
    /// A path in it.
    pub file: Option<String>,
}

impl Repository {
    /// Takes `ORG/NAME[/FILE]` apart.
    pub fn parse(text: &str) -> Result<Self> {
        let plain = |part: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && *part != "." && *part != ".." && part.chars().all(allowed)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() < 2 || !parts.iter().all(plain) {
            bail_input!("hf:{text} names no repository: write hf:ORG/NAME or hf:ORG/NAME/FILE");
        }
        Ok(Self { name: parts[..2].join("/"), file: (parts.len() > 2).then(|| parts[2..].join("/")) })
    }
}

/// The first of several files that the repository has.
pub fn fetch_first(repository: &Repository, files: &[&str]) -> Result<PathBuf> {
    // Whatever is there already wins over asking.
    if let Some(found) = files.iter().find_map(|file| cached(repository, file)) {
        return Ok(found);
    }
    for file in files {
        if let Some(found) = download(repository, file)? {
            return Ok(found);
        }
    }
    bail_input!("hf:{} has none of {}: name one of its files", repository.name, files.join(", "))
}

/// The folder in the cache that holds a repository's files: `first` must be there, of each group one file, and what is `optional` is taken
/// along where it can be had.
pub fn folder_of(
    repository: &Repository,
    first: &str,
    groups: &[&[&str]],
    optional: &[&str],
) -> Result<PathBuf> {
    let path = fetch(repository, first)?;
    for group in groups {
        fetch_first(repository, group)?;
    }
    for file in optional {
        // Without them there is less to know, but nothing is wrong.
        let _ = fetch(repository, file);
    }
    let folder = path.ancestors().nth(std::path::Path::new(first).components().count());
    Ok(folder.map_or_else(PathBuf::new, std::path::Path::to_path_buf))
}

/// The path of a file in the cache, downloaded if it is not there.
pub fn fetch(repository: &Repository, file: &str) -> Result<PathBuf> {
    if let Some(found) = cached(repository, file) {
        return Ok(found);
    }
    match download(repository, file)? {
        Some(found) => Ok(found),
        None => bail_input!("hf:{} has no file {file}", repository.name),
    }
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn cache() -> Cache {
    match (set("HF_HUB_CACHE"), set("HF_HOME")) {
        (Some(folder), _) => Cache::new(folder.into()),
        (None, Some(home)) => Cache::new(PathBuf::from(home).join("hub")),
        (None, None) => Cache::default(),
    }
}

fn is_offline() -> bool {
    let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
    set("HF_HUB_OFFLINE").is_some_and(on)
}

fn cached(repository: &Repository, file: &str) -> Option<PathBuf> {
    cache().repo(Repo::new(repository.name.clone(), RepoType::Model)).get(file)
}

/// Downloads a file into the cache; nothing where the repository has no such file.
fn download(repository: &Repository, file: &str) -> Result<Option<PathBuf>> {
    let name = &repository.name;
    let cache = cache();
    if is_offline() {
        bail_input!(
            "hf:{name} is not in the cache {} with {file}, and HF_HUB_OFFLINE forbids to fetch it: unset it, or download the file \
             elsewhere",
            cache.path().display()
        );
    }
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    let builder = ApiBuilder::from_cache(cache).with_endpoint(endpoint.trim_end_matches('/').to_owned());
    let builder = match set("HF_TOKEN") {
        Some(token) => builder.with_token(Some(token)),
        None => builder,
    };
    let builder = builder.with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let failed = |error: &ApiError| {
        let reason = crate::error::without_backtrace(&error.to_string());
        bad_input!("{file} of hf:{name} could not be fetched from {endpoint}: {reason}")
    };
    let api = builder.build().map_err(|error| failed(&error))?;
    match api.repo(Repo::new(name.clone(), RepoType::Model)).download(file) {
        Ok(path) => Ok(Some(path)),
        Err(ApiError::RequestError(error)) => match *error {
            ureq::Error::StatusCode(404) => Ok(None),
            ureq::Error::StatusCode(code @ (401 | 403)) => bail_input!(
                "hf:{name} may not be read (the server answered {code}): it does not exist, or HF_TOKEN must be that of a user who may"
            ),
            other => Err(failed(&ApiError::RequestError(Box::new(other)))),
        },
        Err(error) => Err(failed(&error)),
    }
}
