//! SIGINT and SIGTERM: the first asks the run to finish its step and save, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::EXIT_INTERRUPTED;

/// Whether the run has been asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens to both signals from now on.
    pub fn listen() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set by the first.
            flag::register_conditional_shutdown(signal, i32::from(EXIT_INTERRUPTED), interrupt.asked.clone())
                .and_then(|_| flag::register(signal, interrupt.asked.clone()))
                .context("listening to signals")?;
        }
        Ok(interrupt)
    }

    /// Whether a signal has come.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
