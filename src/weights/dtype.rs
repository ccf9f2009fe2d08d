//! Types of the numbers in weight files, by PyTorch's names.

use std::fmt;

use tch::Kind;

/// What a family of types holds: values of one class can be copied into a model that has another width of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Truth values.
    Boolean,
    /// Whole numbers.
    Integer,
    /// Floating-point numbers.
    Float,
    /// Pairs of them.
    Complex,
}

macro_rules! dtypes {
    ($($variant:ident $name:literal $size:literal $class:ident $kind:expr;)*) => {
        /// The type of a tensor's values in a file.
        #[allow(missing_docs)] // each is named as in PyTorch
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype { $($variant),* }

        impl Dtype {
            /// Every type.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),*];

            /// PyTorch's name, without `torch.`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Bytes of one value.
            pub fn size(self) -> usize {
                match self { $(Self::$variant => $size),* }
            }

            /// What its values are.
            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }

            /// The kind that tensors of this type have here. tch has no unsigned kinds beyond one byte: those are widened.
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => $kind),* }
            }
        }
    };
}

dtypes! {
    Float64 "float64" 8 Float Kind::Double;
    Float32 "float32" 4 Float Kind::Float;
    Float16 "float16" 2 Float Kind::Half;
    BFloat16 "bfloat16" 2 Float Kind::BFloat16;
    Float8E4M3Fn "float8_e4m3fn" 1 Float Kind::Float8e4m3fn;
    Float8E4M3FnUz "float8_e4m3fnuz" 1 Float Kind::Float8e4m3fnuz;
    Float8E5M2 "float8_e5m2" 1 Float Kind::Float8e5m2;
    Float8E5M2FnUz "float8_e5m2fnuz" 1 Float Kind::Float8e5m2fnuz;
    Int64 "int64" 8 Integer Kind::Int64;
    Int32 "int32" 4 Integer Kind::Int;
    Int16 "int16" 2 Integer Kind::Int16;
    Int8 "int8" 1 Integer Kind::Int8;
    UInt64 "uint64" 8 Integer Kind::Int64;
    UInt32 "uint32" 4 Integer Kind::Int64;
    UInt16 "uint16" 2 Integer Kind::Int;
    UInt8 "uint8" 1 Integer Kind::Uint8;
    Bool "bool" 1 Boolean Kind::Bool;
    Complex32 "complex32" 4 Complex Kind::ComplexHalf;
    Complex64 "complex64" 8 Complex Kind::ComplexFloat;
    Complex128 "complex128" 16 Complex Kind::ComplexDouble;
}

impl Dtype {
    /// The type of that name, PyTorch's short names included (`half`, `long`, …).
    pub fn by_name(name: &str) -> Option<Self> {
        let name = match name {
            "double" => "float64",
            "float" => "float32",
            "half" => "float16",
            "long" => "int64",
            "int" => "int32",
            "short" => "int16",
            "chalf" => "complex32",
            "cfloat" => "complex64",
            "cdouble" => "complex128",
            name => name,
        };
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// The type that `torch.FloatStorage` and its relatives hold.
    pub fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::Float64,
            "FloatStorage" => Self::Float32,
            "HalfStorage" => Self::Float16,
            "BFloat16Storage" => Self::BFloat16,
            "LongStorage" => Self::Int64,
            "IntStorage" => Self::Int32,
            "ShortStorage" => Self::Int16,
            "CharStorage" => Self::Int8,
            "ByteStorage" => Self::UInt8,
            "BoolStorage" => Self::Bool,
            "ComplexFloatStorage" => Self::Complex64,
            "ComplexDoubleStorage" => Self::Complex128,
            _ => return None,
        })
    }

    /// The type of a tensor's values.
    pub fn of_kind(kind: Kind) -> Option<Self> {
        // The first of a kind in the list is its own type, the widened ones come after.
        let own = |dtype: &&Dtype| !matches!(dtype, Self::UInt64 | Self::UInt32 | Self::UInt16);
        Self::ALL.iter().filter(own).find(|dtype| dtype.kind() == kind).copied()
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
