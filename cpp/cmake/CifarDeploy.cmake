# Defines cifar_deploy::cifar_deploy: the headers, and the runtimes that are found here. The source
# tree, an installation and a package all use this file.
#
# Each runtime is looked for (AUTO), demanded (ON) or left alone (OFF):
#   CIFAR_DEPLOY_WITH_OPENVINO      path: OpenVINO_DIR
#   CIFAR_DEPLOY_WITH_ONNXRUNTIME   path: ONNXRUNTIME_ROOT
#   CIFAR_DEPLOY_WITH_TENSORRT      path: TENSORRT_ROOT, CUDAToolkit_ROOT
#   CIFAR_DEPLOY_WITH_TENSORRT_RTX  path: TENSORRT_RTX_ROOT, CUDAToolkit_ROOT

cmake_minimum_required(VERSION 3.21)  # its policies, whatever the project that includes this asks for

# The headers lie in ../include of the source tree and of a package, else where they were installed.
set(_cd_include "${CMAKE_CURRENT_LIST_DIR}/../include")
if(NOT EXISTS "${_cd_include}/cifar_deploy/classifier.hpp")
  set(_cd_include "${CIFAR_DEPLOY_INCLUDE_DIR}")
endif()
get_filename_component(_cd_include "${_cd_include}" ABSOLUTE)

# The first that is included is all packages' of a project; said where another has other headers.
if(TARGET cifar_deploy::cifar_deploy)
  get_target_property(_cd_first cifar_deploy::cifar_deploy INTERFACE_INCLUDE_DIRECTORIES)
  file(GLOB_RECURSE _cd_headers RELATIVE "${_cd_include}" "${_cd_include}/cifar_deploy/*.hpp")
  foreach(_cd_header IN LISTS _cd_headers)
    execute_process(COMMAND "${CMAKE_COMMAND}" -E compare_files "${_cd_include}/${_cd_header}"
      "${_cd_first}/${_cd_header}" RESULT_VARIABLE _cd_differs OUTPUT_QUIET ERROR_QUIET)
    if(_cd_differs)
      message(WARNING "cifar_deploy: the headers of ${_cd_first} are used, and not those of "
        "${_cd_include}, which differ; include the newer of both first.")
      break()
    endif()
  endforeach()
  return()
endif()

foreach(_cd_name OPENVINO ONNXRUNTIME TENSORRT TENSORRT_RTX)
  set(CIFAR_DEPLOY_WITH_${_cd_name} AUTO CACHE STRING "Runtime ${_cd_name}: AUTO, ON or OFF")
  set_property(CACHE CIFAR_DEPLOY_WITH_${_cd_name} PROPERTY STRINGS AUTO ON OFF)
  string(TOUPPER "${CIFAR_DEPLOY_WITH_${_cd_name}}" CIFAR_DEPLOY_WITH_${_cd_name})
endforeach()

# A relative path that was given with -D begins where cmake was called; without a type it would be taken
# to begin in the source folder, as one of another type and of the environment is (`_cd_now` says so).
foreach(_cd_name OpenVINO_DIR ONNXRUNTIME_ROOT TENSORRT_ROOT TENSORRT_RTX_ROOT CUDAToolkit_ROOT)
  if(DEFINED CACHE{${_cd_name}})
    set(${_cd_name} "$CACHE{${_cd_name}}" CACHE PATH "where a runtime of cifar_deploy is")
  endif()
endforeach()

add_library(cifar_deploy::cifar_deploy INTERFACE IMPORTED GLOBAL)
target_include_directories(cifar_deploy::cifar_deploy INTERFACE "${_cd_include}")
target_compile_features(cifar_deploy::cifar_deploy INTERFACE cxx_std_17)
# GCC 8 has std::filesystem in a library of its own.
target_link_libraries(cifar_deploy::cifar_deploy INTERFACE
  "$<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,9>>:stdc++fs>")
set(_cd_found "")

# Says that a runtime is missing and which path to set; an error where it was demanded.
function(_cd_missing name option hint)
  if("${${option}}" STREQUAL "AUTO")
    message(STATUS "cifar_deploy: without ${name}. To use it: ${hint}")
  else()
    message(FATAL_ERROR "cifar_deploy: ${option} is ON, and ${name} was not found. ${hint}")
  endif()
endfunction()

# Which folder `root` names, for a message; nothing where it is not set.
function(_cd_now result root)
  set(where "${${root}}")
  if("${where}" STREQUAL "")
    set(where "$ENV{${root}}")
  endif()
  if(NOT "${where}" STREQUAL "")
    get_filename_component(where "${where}" ABSOLUTE)
    set(where " It is ${where} now.")
  endif()
  set(${result} "${where}" PARENT_SCOPE)
endfunction()

macro(_cd_use name definition)
  target_compile_definitions(cifar_deploy::cifar_deploy INTERFACE ${definition}=1)
  list(APPEND _cd_found "${name}")
endmacro()

# find_package, whose targets are known in one directory only, while the program that links us may be
# above: all that it finds become global. Some alone would not do, for whoever looks for the package
# again then finds half of it and stops.
macro(_cd_find)
  get_property(_cd_before DIRECTORY PROPERTY IMPORTED_TARGETS)
  find_package(${ARGN} QUIET)
  get_property(_cd_now DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(_cd_target IN LISTS _cd_now)
    get_target_property(_cd_global ${_cd_target} IMPORTED_GLOBAL)
    if(NOT _cd_global AND NOT "${_cd_target}" IN_LIST _cd_before)
      set_target_properties(${_cd_target} PROPERTIES IMPORTED_GLOBAL TRUE)
    endif()
  endforeach()
endmacro()

# Looks anew where another path is set than the last time. What the environment had is kept where it has
# nothing: cmake may be called again by a build, from another shell.
macro(_cd_forget variable root)
  set(_cd_from "${${root}}")
  if("${_cd_from}" STREQUAL "")
    set(_cd_from "$ENV{${root}}")
  endif()
  if("${_cd_from}" STREQUAL "")  # of another shell: what was found stays
    set(_cd_from "${${variable}_FROM}")
  endif()
  if("${${variable}}" STREQUAL "${${variable}_MADE}"
     AND NOT "${${variable}_FROM}" STREQUAL "${_cd_from}")
    unset(${variable} CACHE)  # not what was given itself
  endif()
  set(${variable}_FROM "${_cd_from}" CACHE INTERNAL "the ${root} that ${variable} is of")
  set(_cd_given "${${variable}}")
endmacro()

# What was found and not given is to be known the next time.
macro(_cd_remember variable)
  if(NOT _cd_given)
    set(${variable}_MADE "${${variable}}" CACHE INTERNAL "the ${variable} that was found")
  endif()
  mark_as_advanced(${variable})
endmacro()

# A header, a library: where the path that was set says, as it stands also where a toolchain file has
# CMake look into another system's root (CMAKE_FIND_ROOT_PATH); else where CMake looks by itself.
macro(_cd_header variable header root)
  _cd_forget(${variable} ${root})
  set(_cd_where HINTS "${${root}}" ENV ${root} PATH_SUFFIXES ${ARGN})
  find_path(${variable} ${header} ${_cd_where} NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  find_path(${variable} ${header} ${_cd_where})
  _cd_remember(${variable})
endmacro()

macro(_cd_binary variable root)
  _cd_forget(${variable} ${root})
  set(_cd_where NAMES ${ARGN} NAMES_PER_DIR HINTS "${${root}}" ENV ${root} PATH_SUFFIXES lib lib64)
  find_library(${variable} ${_cd_where} NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  find_library(${variable} ${_cd_where})
  _cd_remember(${variable})
endmacro()

function(_cd_library target location include)
  add_library(${target} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${location}")
  target_include_directories(${target} INTERFACE "${include}")
  target_link_libraries(cifar_deploy::cifar_deploy INTERFACE ${target})
endfunction()

_cd_find(Threads)
if(TARGET Threads::Threads)
  target_link_libraries(cifar_deploy::cifar_deploy INTERFACE Threads::Threads)
endif()

# --- OpenVINO ---------------------------------------------------------------------------------
if(CIFAR_DEPLOY_WITH_OPENVINO)
  _cd_find(OpenVINO COMPONENTS Runtime)
  if(TARGET openvino::runtime)
    target_link_libraries(cifar_deploy::cifar_deploy INTERFACE openvino::runtime)
    _cd_use("OpenVINO ${OpenVINO_VERSION}" CIFAR_DEPLOY_HAS_OPENVINO)
  else()
    _cd_missing("OpenVINO" CIFAR_DEPLOY_WITH_OPENVINO
      "Set OpenVINO_DIR to the folder that holds OpenVINOConfig.cmake; of the PyPI wheel it is what `python -c \"import openvino.utils as u; print(u.get_cmake_path())\"` prints.")
  endif()
endif()

# --- ONNX Runtime -----------------------------------------------------------------------------
if(CIFAR_DEPLOY_WITH_ONNXRUNTIME)
  _cd_header(CIFAR_DEPLOY_ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h ONNXRUNTIME_ROOT
    include include/onnxruntime include/onnxruntime/core/session)
  _cd_binary(CIFAR_DEPLOY_ONNXRUNTIME_LIBRARY ONNXRUNTIME_ROOT onnxruntime libonnxruntime.so.1)
  if(CIFAR_DEPLOY_ONNXRUNTIME_INCLUDE AND CIFAR_DEPLOY_ONNXRUNTIME_LIBRARY)
    _cd_library(cifar_deploy::onnxruntime
      "${CIFAR_DEPLOY_ONNXRUNTIME_LIBRARY}" "${CIFAR_DEPLOY_ONNXRUNTIME_INCLUDE}")
    _cd_use("ONNX Runtime" CIFAR_DEPLOY_HAS_ONNXRUNTIME)
  else()
    _cd_now(_cd_where ONNXRUNTIME_ROOT)
    _cd_missing("ONNX Runtime" CIFAR_DEPLOY_WITH_ONNXRUNTIME
      "Set ONNXRUNTIME_ROOT to the folder of an ONNX Runtime release (with include/onnxruntime_cxx_api.h and lib/).${_cd_where}")
  endif()
endif()

# --- TensorRT, TensorRT for RTX ---------------------------------------------------------------
# The number that NvInferVersion.h in `folder` defines `names` (a regular expression) as, or "".
function(_cd_version result folder names)
  set(${result} "" PARENT_SCOPE)
  if(EXISTS "${folder}/NvInferVersion.h")
    file(STRINGS "${folder}/NvInferVersion.h" lines REGEX "define (${names}) +[0-9]")
    if("${lines}" MATCHES "define (${names}) +([0-9]+)")
      set(${result} "${CMAKE_MATCH_2}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

macro(_cd_tensorrt name upper header_root)
  _cd_header(CIFAR_DEPLOY_${upper}_INCLUDE NvInferRuntime.h ${header_root} include)
  # On Windows the library of TensorRT for RTX has its version in its name.
  _cd_version(_cd_rtx_major "${CIFAR_DEPLOY_${upper}_INCLUDE}" TRT_MAJOR_RTX)
  _cd_version(_cd_rtx_minor "${CIFAR_DEPLOY_${upper}_INCLUDE}" TRT_MINOR_RTX)
  set(_cd_names ${ARGN})
  if("${upper}" STREQUAL "TENSORRT_RTX" AND _cd_rtx_major)
    list(APPEND _cd_names tensorrt_rtx_${_cd_rtx_major}_${_cd_rtx_minor})
  endif()
  _cd_binary(CIFAR_DEPLOY_${upper}_LIBRARY ${header_root} ${_cd_names})
  _cd_version(_cd_major "${CIFAR_DEPLOY_${upper}_INCLUDE}" NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE)
  _cd_find(CUDAToolkit)
  if("${upper}" STREQUAL "TENSORRT" AND _cd_major AND _cd_major LESS 10)
    set(_cd_old "${CIFAR_DEPLOY_TENSORRT_INCLUDE}")
    unset(CIFAR_DEPLOY_TENSORRT_INCLUDE CACHE)  # so that the next try looks again
    unset(CIFAR_DEPLOY_TENSORRT_LIBRARY CACHE)
    _cd_missing("TensorRT 10 or later" CIFAR_DEPLOY_WITH_TENSORRT
      "In ${_cd_old} is version ${_cd_major}. Set TENSORRT_ROOT to the folder of a newer release.")
  elseif(CIFAR_DEPLOY_${upper}_INCLUDE AND CIFAR_DEPLOY_${upper}_LIBRARY AND TARGET CUDA::cudart)
    string(TOLOWER ${upper} _cd_lower)
    _cd_library(cifar_deploy::${_cd_lower}
      "${CIFAR_DEPLOY_${upper}_LIBRARY}" "${CIFAR_DEPLOY_${upper}_INCLUDE}")
    target_link_libraries(cifar_deploy::cifar_deploy INTERFACE CUDA::cudart)
    _cd_use("${name}" CIFAR_DEPLOY_HAS_${upper})
  elseif(CIFAR_DEPLOY_${upper}_INCLUDE AND CIFAR_DEPLOY_${upper}_LIBRARY)
    _cd_missing("the CUDA toolkit, which ${name} needs," CIFAR_DEPLOY_WITH_${upper}
      "Set CUDAToolkit_ROOT to the toolkit's folder, as /usr/local/cuda.")
  else()
    _cd_now(_cd_where ${header_root})
    _cd_missing("${name}" CIFAR_DEPLOY_WITH_${upper}
      "Set ${header_root} to the folder of a ${name} release (with include/NvInferRuntime.h and lib/).${_cd_where}")
  endif()
endmacro()

set(_cd_rtx "${CIFAR_DEPLOY_WITH_TENSORRT_RTX}")
if(CIFAR_DEPLOY_WITH_TENSORRT AND _cd_rtx AND NOT "${CIFAR_DEPLOY_WITH_TENSORRT}" STREQUAL "AUTO"
   AND NOT "${_cd_rtx}" STREQUAL "AUTO")
  message(FATAL_ERROR "cifar_deploy: a program holds TensorRT or TensorRT for RTX, not both: set "
    "CIFAR_DEPLOY_WITH_TENSORRT or CIFAR_DEPLOY_WITH_TENSORRT_RTX to OFF.")
endif()
# RTX first where it alone was demanded.
if(_cd_rtx AND NOT "${_cd_rtx}" STREQUAL "AUTO")
  _cd_tensorrt("TensorRT for RTX" TENSORRT_RTX TENSORRT_RTX_ROOT tensorrt_rtx libtensorrt_rtx.so.1)
else()
  if(CIFAR_DEPLOY_WITH_TENSORRT)
    _cd_tensorrt("TensorRT" TENSORRT TENSORRT_ROOT nvinfer nvinfer_11 nvinfer_10 libnvinfer.so.11
      libnvinfer.so.10)
  endif()
  if(_cd_rtx AND NOT TARGET cifar_deploy::tensorrt)
    _cd_tensorrt("TensorRT for RTX" TENSORRT_RTX TENSORRT_RTX_ROOT tensorrt_rtx
      libtensorrt_rtx.so.1)
  endif()
endif()

if(_cd_found)
  string(REPLACE ";" ", " _cd_text "${_cd_found}")
  message(STATUS "cifar_deploy: with ${_cd_text}")
else()
  message(WARNING "cifar_deploy: no runtime was found. Programs will build and refuse every "
    "package; see above which path to set.")
endif()

# --- for the example programs -----------------------------------------------------------------
# Gives `target` libpng and libjpeg where the system has them; it reads PPM without either.
function(cifar_deploy_image_formats target)
  find_package(PNG QUIET)
  find_package(JPEG QUIET)
  if(PNG_FOUND)
    target_link_libraries(${target} PRIVATE PNG::PNG)
    target_compile_definitions(${target} PRIVATE CLASSIFY_WITH_PNG=1)
  else()
    message(STATUS "cifar_deploy: ${target} reads no PNG: libpng (Debian: libpng-dev) was not found")
  endif()
  if(JPEG_FOUND)
    target_link_libraries(${target} PRIVATE JPEG::JPEG)
    target_compile_definitions(${target} PRIVATE CLASSIFY_WITH_JPEG=1)
  else()
    message(STATUS "cifar_deploy: ${target} reads no JPEG: libjpeg (Debian: libjpeg-dev) was not found")
  endif()
endfunction()
