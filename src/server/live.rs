//! What can be replaced as a whole while others look at it.

use std::sync::{Arc, PoisonError, RwLock};

pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// As it is now. Whoever holds it goes on with it.
    pub fn get(&self) -> Arc<T> {
        (self.0.read())
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn replace(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}
