//! The QAPI types of throttle groups.

use crate::qmp::schema::{Object, Type, optional, required};

macro_rules! limits {
    ($($name:literal)*) => {
        static LIMITS: Object = Object::new("ThrottleLimits", &[$(optional($name, Type::U64)),*]);

        /// The options of `object-add`. The words with `x-` are the older form of `limits`.
        pub(super) static THROTTLE_GROUP: Object = Object::new(
            "ThrottleGroupProperties",
            &[
                optional("limits", Type::Object(&LIMITS)),
                $(optional(concat!("x-", $name), Type::U64)),*
            ],
        );
    };
}

limits! {
    "iops-total" "iops-total-max" "iops-total-max-length"
    "iops-read" "iops-read-max" "iops-read-max-length"
    "iops-write" "iops-write-max" "iops-write-max-length"
    "bps-total" "bps-total-max" "bps-total-max-length"
    "bps-read" "bps-read-max" "bps-read-max-length"
    "bps-write" "bps-write-max" "bps-write-max-length"
    "iops-size"
}

/// The value of a throttle group's property `limits`.
pub(super) static SET_LIMITS: Object =
    Object::new("x-SetLimits", &[required("limits", Type::Object(&LIMITS))]);
