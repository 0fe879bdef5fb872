//! Files that a server uses, looked at again while it is used, so that changed ones need neither signal nor restart. What cannot
//! be used is told once, and changes nothing.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often the files are looked at, while somebody asks.
const LOOK: Duration = Duration::from_secs(1);

/// Files, and what they are for. [`fmt::Display`] names both, for the log.
pub trait Source: fmt::Display + Send {
    /// What they hold. When that becomes another it comes into use.
    type Contents: PartialEq + Send;
    /// What is made of it.
    type Value: Send + Sync;

    /// Reads them.
    fn read(&self) -> Result<Self::Contents, String>;

    /// Makes of them what is used, if they are sound.
    fn make(&self, contents: &Self::Contents) -> Result<Self::Value, String>;

    /// They come into use.
    fn used(&self, _: &Self::Contents) {}

    /// They have changed, and cannot be used.
    fn refused(&self) {}
}

/// What some files say, shared by those who use it and those who change which files these are.
pub struct Watched<S: Source>(Arc<Mutex<Option<InUse<S>>>>);

struct InUse<S: Source> {
    source: S,
    contents: S::Contents,
    value: Arc<S::Value>,
    looked: Instant,
    /// Why the files cannot be used, as logged last.
    refused: Option<String>,
}

impl<S: Source> Clone for Watched<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Source> Watched<S> {
    /// What these files say; without any, nothing.
    pub fn new(source: Option<S>) -> Result<Self, String> {
        let watched = Self(Arc::default());
        watched.set(source)?;
        Ok(watched)
    }

    /// What they say now. Looks at them first, if that is due.
    pub fn current(&self) -> Option<Arc<S::Value>> {
        let mut state = self.lock();
        let in_use = state.as_mut()?;
        if in_use.looked.elapsed() >= LOOK {
            in_use.look();
        }
        Some(Arc::clone(&in_use.value))
    }

    /// Other files from now on, or none. If they cannot be used, all stays as it was.
    pub fn set(&self, source: Option<S>) -> Result<(), String> {
        let new = source.map(InUse::new).transpose()?;
        let mut state = self.lock();
        if let Some(new) = &new
            && state.as_ref().is_none_or(|old| old.contents != new.contents)
        {
            new.source.used(&new.contents);
        }
        *state = new;
        Ok(())
    }

    /// Has the files looked at again at once.
    #[cfg(test)]
    pub fn forget_the_time(&self) {
        if let Some(in_use) = self.lock().as_mut() {
            in_use.looked -= LOOK;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<InUse<S>>> {
        // A panic cannot have left it half changed.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<S: Source> InUse<S> {
    fn new(source: S) -> Result<Self, String> {
        let contents = source.read()?;
        let value = Arc::new(source.make(&contents)?);
        Ok(Self { source, contents, value, looked: Instant::now(), refused: None })
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        let changed = self.source.read().and_then(|contents| match contents == self.contents {
            true => Ok(None),
            false => self.source.make(&contents).map(|value| Some((contents, value))),
        });
        match changed {
            Ok(None) => self.refused = None,
            Ok(Some((contents, value))) => {
                log::info!("{} has changed, and is in use now", self.source);
                self.source.used(&contents);
                (self.contents, self.value, self.refused) = (contents, Arc::new(value), None);
            }
            Err(why) => {
                if self.refused.as_ref() != Some(&why) {
                    log::error!("{why}; what was before stays in use");
                    self.source.refused();
                    self.refused = Some(why);
                }
            }
        }
    }
}
